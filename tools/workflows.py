"""Writes example_workflows with their pictures, the blueprint, and the picture of docs/comfyui.md.

    COMFYUI_DIR=... COMFYUI_PYTHON=... python tools/workflows.py [--no-pictures | --stills]

The graphs are described here in ComfyUI's API format with places for the nodes. A ComfyUI started
for it with this pack and a reduced checkpoint of random weights, and driven in headless Chromium
(playwright), turns them into workflow files and takes their pictures, which `template_cards.py`
captions. Run it again when a node's inputs or widgets change. `--stills` takes the pictures alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "example_workflows"
Graph = dict[str, dict[str, Any]]
_ZOOM = 0.9  # of the pictures: below 0.6 the canvas draws no texts
BLUEPRINT_NAME = "Harden and Export"
SD15, SDXL = "v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors"


def node(
    kind: str, x: int, y: int, title: str = "", *, wide: int = 300, **inputs: Any
) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}, "at": (x, y, wide)}


# Harden Model, where wires lead from the loader past it; reroutes take them around
PASSED = (480, 130)


def hardening(
    checkpoint: str, resolution: int = 0, at: tuple[int, int] = (420, 130), **settings: Any
) -> Graph:
    """Load, concepts, settings, Harden Model (5, placed `at`): what the examples begin with."""
    return {
        "1": node("CheckpointLoaderSimple", 40, 130, ckpt_name=checkpoint),
        "2": node("ResAlign_ConceptList", 40, 290, preset="weapons"),
        "3": node("ResAlign_HardeningSettings", 40, 560, resolution=resolution, **settings),
        "5": node(
            "ResAlign_HardenModel", *at, model=["1", 0], clip=["1", 1], vae=["1", 2],
            concepts=["2", 0], settings=["3", 0],
        ),
    }  # fmt: skip


def sampler(number: int, model: list[Any], x: int, y: int, title: str) -> Graph:
    """A KSampler with decoder and preview, numbered from `number`; texts are 20 and 21."""
    first, second, third = (str(number + k) for k in range(3))
    return {
        first: node(
            "KSampler", x, y, title, model=model, seed=42, steps=20, cfg=7.0,
            sampler_name="euler", scheduler="normal", denoise=1.0, positive=["20", 0],
            negative=["21", 0], latent_image=["22", 0],
        ),
        second: node("VAEDecode", x + 380, y, samples=[first, 0], vae=["1", 2]),
        third: node("PreviewImage", x + 760, y, title, images=[second, 0]),
    }  # fmt: skip


def texts(x: int, y: int) -> Graph:
    return {
        "20": node("CLIPTextEncode", x, y, "prompt", clip=["1", 1], text="a photo of a red fox"),
        "21": node("CLIPTextEncode", x, y + 230, "negative prompt", clip=["1", 1], text=""),
        "22": node("EmptyLatentImage", x, y + 460, width=512, height=512, batch_size=1),
    }


def export(x: int, y: int, *, lora: int = -380, **more: Any) -> Graph:
    """Write checkpoint and LoRA. lora: how far below the former the latter stands."""
    return {
        "8": node("ResAlign_ExportHardenedCheckpoint", x, y, wide=400, run=["5", 3], **more),
        "9": node("ResAlign_SaveHardeningLora", x, y + lora, wide=400, run=["5", 3]),
    }


def in_three_files(denoiser: str, text: str, kind: str, vae: str) -> Graph:
    """Harden and export a model whose parts have a loader each. kind: the type of its CLIP."""
    graph = {
        **hardening("", preset="balanced", precision="bf16", gradient_checkpointing=True),
        **export(840, 510),
        "1": node("UNETLoader", 40, 130, unet_name=f"{denoiser}.safetensors"),
        "10": node("CLIPLoader", 40, 262, clip_name=f"{text}.safetensors", type=kind),
        "11": node("VAELoader", 40, 418, vae_name=f"{vae}.safetensors"),
    }
    for key, y in (("2", 558), ("3", 812)):
        graph[key]["at"] = (40, y, 300)
    graph["5"]["inputs"] |= {"clip": ["10", 0], "vae": ["11", 0]}
    return graph


WORKFLOWS: dict[str, Graph] = {
    "1 Quick harden and compare": {
        **hardening(SD15, at=PASSED, preset="fast"),
        "14": node(
            "ResAlign_DrawConcept", 1020, 130, "draw what was removed",
            before=["1", 0], after=["5", 0], clip=["1", 1], vae=["1", 2], concepts=["2", 0],
            seed=42, steps=20, cfg=7.0, width=512, height=512,
        ),
        "15": node("PreviewImage", 1400, 130, "what was removed: original, hardened (blurred)",
                   wide=650, images=["14", 2]),
        **texts(480, 1070),
        **sampler(23, ["1", 0], 1020, 800, "what should stay: original"),
        **sampler(26, ["5", 0], 1020, -400, "what should stay: hardened"),
        "11": node("LossGraphNode", 1020, -900, loss=["5", 2], filename_prefix="loss_graph"),
    },
    "2 Full harden with probe": {
        **hardening(SD15, at=PASSED, preset="balanced"),
        "4": node("ResAlign_FineTuningSettings", 40, 500, preset="balanced"),
        "6": node(
            "ResAlign_ResilienceProbe", 940, 130, before=["1", 0], clip=["1", 1], vae=["1", 2],
            run=["5", 3], preset="quick",
        ),
        "7": node("ResAlign_ShowReport", 1360, 130, wide=400, report=["6", 2]),
        "10": node("PreviewImage", 1360, 790, "curve", images=["6", 1]),
        **export(1360, 1210, lora=580, report=["6", 2]),
    },
    "3 Try my LoRA": {
        **hardening(SD15, at=PASSED, preset="balanced"),
        "12": node(
            "ResAlign_TryMyLora", 940, 130, before=["1", 0], after=["5", 0], clip=["1", 1],
            vae=["1", 2], lora="my_lora.safetensors", prompt="a portrait",
        ),
        "13": node("PreviewImage", 1320, 130, "original and hardened, both with my LoRA",
                   images=["12", 2]),
    },
    "Harden SDXL": {
        **hardening(
            SDXL, 512, preset="balanced", precision="bf16", gradient_checkpointing=True
        ),
        **export(840, 510),
    },
}  # fmt: skip
WORKFLOWS["Harden FLUX.2 klein"] = in_three_files(
    "flux-2-klein-base-4b", "qwen_3_4b", "flux2", "flux2-vae"
)
WORKFLOWS["Harden Anima"] = in_three_files(
    "anima-base-v1.0", "qwen_3_06b_base", "stable_diffusion", "qwen_image_vae"
)
WORKFLOWS["2 Full harden with probe"]["5"]["inputs"]["fine_tuning"] = ["4", 0]


def blueprint_graph() -> Graph:
    """Harden Model (5) and the export (8) between neighbours, whose links become its sockets."""
    graph = hardening(SD15, preset="balanced") | {
        "4": node("ResAlign_FineTuningSettings", 0, 0, preset="balanced"),
        "8": node("ResAlign_ExportHardenedCheckpoint", 0, 0, run=["5", 3]),
        "30": node("PreviewAny", 0, 0, source=["8", 0]),
        "31": node("LossGraphNode", 0, 0, loss=["5", 2], filename_prefix="loss"),
        "32": node("ResAlign_TryMyLora", 0, 0, after=["5", 0]),
        "33": node("ResAlign_SaveHardeningLora", 0, 0, run=["5", 3]),
    }
    graph["5"]["inputs"]["fine_tuning"] = ["4", 0]
    return {key: {f: v for f, v in one.items() if f != "at"} for key, one in graph.items()}


def api(name: str) -> Graph:
    """A workflow in the API format, without places; what is left out is the node's default."""
    return {
        key: {"class_type": one["class_type"], "inputs": dict(one["inputs"])}
        for key, one in WORKFLOWS[name].items()
    }


LOAD = """async ([graph, places]) => {
  const WIDE = ['ResAlign_HardenModel', 'ResAlign_ResilienceProbe', 'ResAlign_ShowReport'];
  await app.loadApiJson(graph, 'example');
  await new Promise(done => setTimeout(done, 600));
  for (const node of app.graph.nodes) {
    const [x, y, wide] = places[String(node.id)];
    node.pos = [x, y];
    const wanted = graph[String(node.id)];
    for (const widget of node.widgets ?? []) // a file that is not here keeps its name
      if (typeof wanted.inputs[widget.name] === 'string') widget.value = wanted.inputs[widget.name];
      else if (widget.name === 'control_after_generate') widget.value = 'fixed'; // to compare
    const size = node.computeSize();
    node.setSize([Math.max(size[0], WIDE.includes(node.type) ? 340 : wide), size[1]]);
  }
  app.canvas.setDirty(true, true);
  const workflow = app.graph.serialize();
  for (const node of workflow.nodes) delete node.properties?.ver;
  return workflow;
}"""
BLUEPRINT = """async ([graph, inside, name]) => {
  await app.loadApiJson(graph, 'blueprint');
  await new Promise(done => setTimeout(done, 600));
  const chosen = new Set(app.graph.nodes.filter(node => inside.includes(String(node.id))));
  const { node } = app.graph.convertToSubgraph(chosen);
  node.title = name;
  node.subgraph.name = name;
  const workflow = app.graph.serialize();
  const kept = workflow.nodes.filter(one => one.type === node.subgraph.id);
  for (const one of kept) {
    one.pos = [0, 0];
    for (const input of one.inputs) input.link = null;
    for (const output of one.outputs) output.links = [];
  }
  return { revision: 0, last_node_id: kept[0].id, last_link_id: 0, nodes: kept, links: [],
           definitions: workflow.definitions, extra: {}, version: 0.4 };
}"""


def plain(graph: Graph) -> Graph:
    return {key: {f: v for f, v in one.items() if f != "at"} for key, one in graph.items()}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_graphs(page: Any) -> None:
    from template_notes import decorated, without_nulls  # beside this script

    for name, graph in WORKFLOWS.items():
        places = {key: one["at"] for key, one in graph.items()}
        flow = page.evaluate(LOAD, [plain(graph), places])
        write(EXAMPLES / f"{name}.json", decorated(name, flow))
    blueprint = page.evaluate(BLUEPRINT, [blueprint_graph(), ["5", "8"], BLUEPRINT_NAME])
    write(ROOT / "subgraphs" / f"{BLUEPRINT_NAME}.json", without_nulls(blueprint))


def take_still(front: Any, name: str, folder: Path) -> None:
    """Draw the card of an example that is opened and not run."""
    from template_cards import draw_card  # beside this script

    flow = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    front.page.set_viewport_size(_window(flow))
    front.show(flow, name)
    front.page.keyboard.press("Escape")
    still = front.shoot(folder / "still.jpg", clip=True).read_bytes()
    draw_card(front.page, still, name, EXAMPLES / f"{name}.jpg")


def _window(flow: dict[str, Any]) -> dict[str, int]:
    """Return a window in which all nodes are large enough for the canvas to draw their texts."""
    boxes = [(*node["pos"], *node["size"]) for node in flow["nodes"]]
    boxes += [group["bounding"] for group in flow["groups"]]
    boxes += [(*one["pos"], 0, 0) for one in flow["extra"].get("reroutes", ())]
    ends = []
    for axis in (0, 1):
        low = min(box[axis] for box in boxes) - 60
        high = max(box[axis] + box[axis + 2] for box in boxes) + 60
        ends.append(round(_ZOOM * (high - low)))
    return {"width": ends[0] + 80, "height": ends[1] + 120}


def put_named_files(models: Path) -> None:
    """Put empty files where the loaders of the examples look, so that none is shown as missing."""
    folders = {"unet_name": "diffusion_models", "clip_name": "text_encoders", "vae_name": "vae"}
    for graph in WORKFLOWS.values():
        for one in graph.values():
            for field, folder in folders.items():
                if field in one["inputs"]:
                    (models / folder).mkdir(parents=True, exist_ok=True)
                    (models / folder / one["inputs"][field]).touch()


def take_live_picture(front: Any, path: Path) -> None:
    """Harden Model at work, close by; a cap that random weights do not reach lets curves move."""
    settings = {"preset": "custom", "preset.harm_cap": 4, "learning_rate": 0.002}
    front.load(
        EXAMPLES / "1 Quick harden and compare.json", checkpoint=SD15, outer_steps=24, **settings
    )
    front.queue()
    front.wait(lambda: front.at("HardenModel", "harden", 18), 900)
    front.close_up("HardenModel")
    front.shoot(path, fit=False, clip=True)
    front.interrupt()


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from host_browser import front
    from host_comfyui import CHECKPOINT, comfyui

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "models/checkpoints"
        loras = Path(folder) / "models/loras"
        for place, name in ((checkpoints, SD15), (checkpoints, SDXL)):
            place.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(checkpoints / CHECKPOINT)
        loras.mkdir()
        (loras / "my_lora.safetensors").symlink_to(loras / "hardening_lora.safetensors")
        put_named_files(Path(folder) / "models")
        with (
            comfyui(Path(folder), ROOT, 8188) as host,
            front(host.address) as page,
        ):
            page.open()
            page.bare()
            if "--stills" in sys.argv:
                for name in WORKFLOWS:
                    take_still(page, name, Path(folder))
                return
            write_graphs(page.page)
            if "--no-pictures" not in sys.argv:
                for name in WORKFLOWS:
                    take_still(page, name, Path(folder))
                take_live_picture(page, ROOT / "docs/images/comfyui_live.png")


if __name__ == "__main__":
    main()
