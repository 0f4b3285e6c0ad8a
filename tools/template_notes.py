"""Puts groups and a note into the example workflows: what to choose, what to remove, what runs.

`python tools/template_notes.py` writes them into the files again; nodes keep their settings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "example_workflows"
Flow = dict[str, Any]

_COLOUR = "#3f789e"
_HEAD, _PAD, _BAR = 48, 14, 30  # of a group's title, around its nodes, of a node's title
_FOOT = 70  # what Nodes 2.0 adds to a node: its rows are higher, and the pack's name stands below
_FIRST = {"CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "VAELoader"}
_SECOND = {"ResAlign_ConceptList", "ResAlign_HardeningSettings", "ResAlign_FineTuningSettings"}
_THIRD = {"ResAlign_HardenModel"}
_ALONE = {"CLIPTextEncode", "EmptyLatentImage"}  # below Harden Model, in no group
# That `custom` and advanced inputs add to a node with another below it
_ROOM = {"ResAlign_FineTuningSettings": 400, "ResAlign_ConceptList": 40}
_NOTE = (-420, 130, 400)
_LETTERS, _LINE = 60, 17  # of a line of a note, and its height
# Heights with a box in which a whole answer is in sight
_HIGH = {
    "ResAlign_ExportHardenedCheckpoint": 440, "ResAlign_SaveHardeningLora": 280,
    "ResAlign_ShowReport": 520,
}  # fmt: skip
_UNFOLDED = 540  # Hardening Settings, where an advanced input is set
# Points by which a wire passes nodes that it does not belong to: (from, slot, to): points.
# Lanes over Harden Model, and under it
_OVER = {slot: [(440, 30 - 20 * slot), (870, 30 - 20 * slot)] for slot in range(3)}
_UNDER = [(420, 880), (880, 880)]
_WAYS: dict[str, dict[tuple[int, int, int], list[tuple[int, int]]]] = {
    "1 Quick harden and compare": {
        **{(1, slot, 14): lane for slot, lane in _OVER.items()},
        (2, 0, 14): _UNDER,
        (1, 0, 23): [(420, 905), (880, 905)],
        (1, 2, 24): [(400, 930), (900, 930), (960, 700), (1360, 700)],
        (1, 2, 27): [(440, -50), (1360, -50)],
    },
    "2 Full harden with probe": {
        **{(1, slot, 6): lane for slot, lane in _OVER.items()},
        (5, 3, 8): [(880, 940), (880, 1350), (1300, 1350)],
        (5, 3, 9): [(860, 980), (860, 1390), (1280, 1390)],
        (6, 2, 8): [(1320, 760), (1320, 1240)],
    },
    "3 Try my LoRA": {(1, slot, 12): lane for slot, lane in _OVER.items()},
}
# Where ComfyUI offers to download what is missing: the addresses of its own templates
_HUB = "https://huggingface.co/"
_MODELS = {
    "v1-5-pruned-emaonly-fp16.safetensors": (
        "checkpoints", "Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"),
    "sd_xl_base_1.0.safetensors": (
        "checkpoints", "stabilityai/stable-diffusion-xl-base-1.0/resolve/main/"),
    "flux-2-klein-base-4b.safetensors": (
        "diffusion_models", "Comfy-Org/flux2-klein/resolve/main/split_files/diffusion_models/"),
    "qwen_3_4b.safetensors": (
        "text_encoders", "Comfy-Org/flux2-klein/resolve/main/split_files/text_encoders/"),
    "flux2-vae.safetensors": ("vae", "Comfy-Org/flux2-dev/resolve/main/split_files/vae/"),
    "anima-base-v1.0.safetensors": (
        "diffusion_models", "circlestone-labs/Anima/resolve/main/split_files/diffusion_models/"),
    "qwen_3_06b_base.safetensors": (
        "text_encoders", "circlestone-labs/Anima/resolve/main/split_files/text_encoders/"),
    "qwen_image_vae.safetensors": (
        "vae", "circlestone-labs/Anima/resolve/main/split_files/vae/"),
}  # fmt: skip
_LAST = {
    "1 Quick harden and compare": "4 Compare the original and the hardened model",
    "2 Full harden with probe": "4 Measure it, read the report, export",
    "Harden SDXL": "4 Export",
    "Harden Anima": "4 Export",
    "Harden FLUX.2 klein": "4 Export",
    "3 Try my LoRA": "4 Try your LoRA on both",
}
_CHOOSE = (
    "1. Choose {what}. If you do not have the file that the example names, the first of yours "
    "that fits is chosen; if none fits, ComfyUI offers it for download.\n2. Choose "
)
_CHOOSE_PARTS = (
    "1. Choose {what}. Where a file is missing, ComfyUI offers it for download.\n2. Choose "
)
_RUN = "\n3. Press *Run*: "
_MEMORY = "many hours. **Memory Plan** tells whether it fits your GPU."
_NOTES = {
    "1 Quick harden and compare": (
        "# Harden and compare\n\nShows within minutes that everything works; the result is a test "
        "run and **not safe to publish**.\n\n"
        + _CHOOSE.format(what="your Stable Diffusion 1.x checkpoint")
        + "what to remove."
        + _RUN
        + "Harden Model shows what it does, how far it is and what is left.\n4. Both models draw "
        "what was removed, blurred, and something that should stay.\n\nFor a real run open *full "
        "harden with probe*."
    ),
    "2 Full harden with probe": (
        "# Harden, measure, export\n\n"
        + _CHOOSE.format(what="your checkpoint")
        + "what to remove, how thoroughly, and against which fine-tuning. `balanced` only slows "
        "its return. For a model to publish choose `durable`: about two hours, and more memory."
        + _RUN
        + "about two hours with the probe, on a common GPU. A cancelled run continues if you press "
        "*Run* again with the same settings.\n4. The probe fine-tunes both models for real and "
        "counts what comes back. The probe preset `quick` is a first look, whose figures are "
        "not for publishing; `standard` is for that, and takes hours. `denoising` judges "
        "predictions: no detector here sees weapons, so look at pictures of your own too.\n5. "
        "**The file comes after the probe**, whose figures go into it. To have it at once, "
        "disconnect `report` from Export "
        "Hardened Checkpoint."
    ),
    "Harden SDXL": (
        "# Harden SDXL\n\n"
        + _CHOOSE.format(what="your SDXL checkpoint")
        + "what to remove."
        + _RUN
        + _MEMORY
        + "\n4. The file appears in `models/checkpoints`."
    ),
    "Harden FLUX.2 klein": (
        "# Harden FLUX.2 klein\n\n"
        + _CHOOSE_PARTS.format(
            what="the denoiser of FLUX.2 klein base 4B, Qwen3 4B (type `flux2`) and the VAE of "
            "FLUX.2"
        )
        + "what to remove."
        + _RUN
        + _MEMORY
        + " ComfyUI's CLIP encodes the prompts.\n4. The file appears in "
        "`models/diffusion_models`."
    ),
    "Harden Anima": (
        "# Harden Anima\n\n"
        + _CHOOSE_PARTS.format(
            what="the denoiser of Anima, Qwen3 0.6B (any type) and the VAE of Qwen-Image"
        )
        + "what to remove."
        + _RUN
        + _MEMORY
        + " ComfyUI's CLIP encodes the prompts.\n4. The file appears in "
        "`models/diffusion_models`. Anima's licence is for non-commercial use."
    ),
    "3 Try my LoRA": (
        "# Try your LoRA\n\n"
        + _CHOOSE.format(what="your checkpoint")
        + "what to remove."
        + _RUN
        + "a finished run is reused at once.\n4. Choose a LoRA of `models/loras` and a prompt: the "
        "same noise with both models, side by side. The pictures are blurred until "
        "`show_pictures` is on."
    ),
}


def decorated(name: str, flow: Flow) -> Flow:
    """Return a workflow with its groups and note, and without fields that are null."""
    flow = without_nulls(flow)
    nodes = [node for node in flow["nodes"] if node["type"] != "MarkdownNote"]
    _place(name, nodes)
    _make_room(nodes)
    places = {
        "1 Choose the checkpoint": [n for n in nodes if n["type"] in _FIRST],
        "2 What to remove, and how": [n for n in nodes if n["type"] in _SECOND],
        "3 Harden": [n for n in nodes if n["type"] in _THIRD],
        _LAST[name]: [n for n in nodes if n["type"] not in _FIRST | _SECOND | _THIRD | _ALONE],
    }
    flow["groups"] = [
        {"id": number, "title": title, "bounding": _around(inside), "color": _COLOUR,
         "font_size": 22, "flags": {}}
        for number, (title, inside) in enumerate(places.items(), start=1)
    ]  # fmt: skip
    for node in nodes:
        if node["type"] in _FIRST:
            node["properties"]["models"] = [_model(node["widgets_values"][0])]
    last = max(node["id"] for node in nodes) + 1
    x, y, wide = _NOTE
    high = _height(_NOTES[name])
    note = {
        "id": last, "type": "MarkdownNote", "pos": [x, y], "size": [wide, high], "flags": {},
        "order": 0, "mode": 0, "inputs": [], "outputs": [], "properties": {},
        "widgets_values": [_NOTES[name]], "title": "Read me",
    }  # fmt: skip
    flow = {**flow, "nodes": [*nodes, note], "last_node_id": max(last, flow["last_node_id"])}
    return _led(flow, _WAYS.get(name, {}))


def _model(name: str) -> Flow:
    directory, place = _MODELS[name]
    return {"name": name, "url": f"{_HUB}{place}{name}", "directory": directory}


def _height(text: str) -> int:
    """Return the height at which a note shows all of its text."""
    lines = sum(-(-len(line) // _LETTERS) if line else 0.6 for line in text.split("\n"))
    return round(76 + _LINE * lines)


def _place(name: str, nodes: list[Flow]) -> None:
    """Put nodes where `tools/workflows.py` has them, with boxes that are high enough."""
    from workflows import WORKFLOWS  # beside this script

    for node in nodes:
        x, y, wide = WORKFLOWS[name][str(node["id"])]["at"]
        node["pos"] = [x, y]
        least = _HIGH.get(node["type"], 0)
        if node["type"] == "ResAlign_HardeningSettings" and True in node["widgets_values"]:
            least = _UNFOLDED
        node["size"] = [max(wide, node["size"][0]), max(least, node["size"][1])]


def _led(flow: Flow, ways: dict[tuple[int, int, int], list[tuple[int, int]]]) -> Flow:
    """Return a workflow whose wires pass the points of `ways`: ComfyUI's reroutes."""
    # No `ds`: a saved workflow has one, by which web/resalign_open.js knows it from a template
    extra: Flow = {"resalign": "template"}
    reroutes: list[Flow] = []
    ends = []
    for link, start, slot, end, *_ in flow["links"]:
        parent = None
        for point in ways.get((start, slot, end), ()):
            number = len(reroutes) + 1
            before = {} if parent is None else {"parentId": parent}
            reroutes.append({"id": number, **before, "pos": list(point), "linkIds": [link]})
            parent = number
        if parent is not None:
            ends.append({"id": link, "parentId": parent})
    if reroutes:
        extra |= {"reroutes": reroutes, "linkExtensions": ends}
    return {**flow, "extra": extra}


def _make_room(nodes: list[Flow]) -> None:
    """Leave room for a group's title between the loaders and what is below, and for `custom`.

    Hardening Settings is the last: nothing is below it that its advanced inputs could cover.
    """
    column = sorted((n for n in nodes if n["type"] in _FIRST | _SECOND), key=lambda n: n["pos"][1])
    loaders = [node for node in column if node["type"] in _FIRST]
    free = None
    for node in column:
        x, y = node["pos"]
        node["pos"] = [x, y if free is None else free + _BAR]
        free = node["pos"][1] + node["size"][1] + _FOOT
        if node is loaders[-1]:
            free += _HEAD
        free += _ROOM.get(node["type"], 0)


def _around(nodes: list[Flow]) -> list[float]:
    left = min(node["pos"][0] for node in nodes) - _PAD
    top = min(node["pos"][1] for node in nodes) - _BAR - _HEAD
    right = max(node["pos"][0] + node["size"][0] for node in nodes) + _PAD
    room = {
        "ResAlign_HardeningSettings": 190, "ResAlign_HardenModel": 40,
        "ResAlign_ResilienceProbe": 240, "PreviewImage": 280, "LossGraphNode": 280,
    }  # fmt: skip
    bottom = max(n["pos"][1] + n["size"][1] + room.get(n["type"], 0) for n in nodes) + _FOOT
    return [left, top, right - left, bottom - top]


def without_nulls(value: Any) -> Any:
    """Leave out what newer front ends refuse, such as `slot_index: null`; a link may be null."""
    if isinstance(value, list):
        return [without_nulls(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_nulls(one) for key, one in value.items() if one is not None or key == "link"
    }


def main() -> None:
    for path in sorted(EXAMPLES.glob("*.json")):
        flow = decorated(path.stem, json.loads(path.read_text(encoding="utf-8")))
        text = json.dumps(flow, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
