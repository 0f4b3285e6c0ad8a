"""The example workflows and the blueprint fit the nodes as they are now."""

import asyncio
import importlib.util
import json

import pytest
from fakes_comfy import install
from PIL import Image

NAMES = [  # ComfyUI shows the files' names as titles
    "1 Quick harden and compare",
    "2 Full harden with probe",
    "3 Try my LoRA",
    "Harden Anima",
    "Harden FLUX.2 klein",
    "Harden SDXL",
]


@pytest.fixture
def schemas(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)
    import resalign

    extension = asyncio.run(resalign.comfy_entrypoint())
    found = [node.define_schema() for node in asyncio.run(extension.get_node_list())]
    return {schema.node_id: schema for schema in found}


def sockets(schema):
    """Ids of all inputs, and of those that are widgets with a fixed set of choices."""
    return {item.id: item for item in schema.inputs}


def ours(workflow):
    graphs = [workflow, *(workflow.get("definitions") or {}).get("subgraphs", [])]
    return [n for g in graphs for n in g["nodes"] if n["type"].startswith("ResAlign_")]


def test_there_are_six_examples_with_a_picture_each(root):
    """Those with Qwen3 are shown as they open: tests/test_host_flow_nodes.py runs them."""
    folder = root / "example_workflows"
    assert sorted(path.stem for path in folder.glob("*.json")) == NAMES
    assert sorted(path.stem for path in folder.glob("*.jpg")) == NAMES


def test_every_example_has_a_card_that_says_what_it_does(root):
    spec = importlib.util.spec_from_file_location("cards", root / "tools" / "template_cards.py")
    assert spec and spec.loader
    cards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cards)
    assert sorted(cards.DESCRIPTIONS) == NAMES
    for name in NAMES:
        with Image.open(root / f"example_workflows/{name}.jpg") as card:
            assert card.size == (cards.WIDTH, cards.HEIGHT), "run tools/workflows.py --stills"
            strip = card.convert("L").crop((0, cards.HEIGHT - cards.STRIP, *card.size))
        low, high = strip.getextrema()
        assert high > 240 and low < 80, "white letters on a dark strip"


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_what_to_do_in_its_groups_and_note(root, name):
    flow = json.loads((root / f"example_workflows/{name}.json").read_text())
    assert [group["title"][0] for group in flow["groups"]] == ["1", "2", "3", "4"]
    (note,) = [node for node in flow["nodes"] if node["type"] == "MarkdownNote"]
    assert all(f"\n{number}. " in note["widgets_values"][0] for number in (1, 2, 3))

    def overlap(one, other):
        return all(one[k] < other[k] + other[k + 2] and other[k] < one[k] + one[k + 2]
                   for k in (0, 1))  # fmt: skip

    boxes = [group["bounding"] for group in flow["groups"]]
    nodes = [(*n["pos"], *n["size"]) for n in flow["nodes"]]
    nodes = [(x, y - 30, wide, high + 30) for x, y, wide, high in nodes]
    for kind in (boxes, nodes):
        pairs = [(a, b) for i, a in enumerate(kind) for b in kind[i + 1 :]]
        assert not [pair for pair in pairs if overlap(*pair)]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_opens_as_a_template_and_names_where_its_files_are_found(root, name):
    flow = json.loads((root / f"example_workflows/{name}.json").read_text(encoding="utf-8"))
    assert flow["extra"]["resalign"] == "template" and "ds" not in flow["extra"]
    loaders = [node for node in flow["nodes"] if node["type"].endswith(("Loader", "LoaderSimple"))]
    assert loaders
    for node in loaders:
        (model,) = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0]
        assert model["url"].startswith("https://huggingface.co/")
        assert model["url"].endswith("/" + model["name"])
        folders = {"UNETLoader": "diffusion_models", "CLIPLoader": "text_encoders",
                   "VAELoader": "vae"}  # fmt: skip
        assert model["directory"] == folders.get(node["type"], "checkpoints")


@pytest.mark.parametrize("name", NAMES)
def test_note_and_the_first_three_steps_fit_side_by_side_into_a_window(root, name):
    """web/resalign_open.js shows them at 0.75 or more: ComfyUI draws texts from 0.6 on."""
    flow = json.loads((root / f"example_workflows/{name}.json").read_text(encoding="utf-8"))
    (note,) = [(*n["pos"], *n["size"]) for n in flow["nodes"] if n["type"] == "MarkdownNote"]
    shown = [note, *(g["bounding"] for g in flow["groups"] if g["title"][0] in "123")]
    left, right = min(box[0] for box in shown), max(box[0] + box[2] for box in shown)
    assert (1280 - 90) / (right - left) >= 0.9
    top = min(box[1] for box in shown)
    starts = [n["pos"][1] for n in flow["nodes"]
              if n["type"] in ("ResAlign_HardenModel", "ResAlign_ConceptList")]  # fmt: skip
    assert all(start - top < 700 for start in starts)


@pytest.mark.parametrize("name", [*NAMES, "Harden and Export"])
def test_no_field_is_null_that_newer_front_ends_refuse(root, name):
    (path,) = [*root.glob(f"example_workflows/{name}.json"), *root.glob(f"subgraphs/{name}.json")]
    text = path.read_text()
    assert '"slot_index": null' not in text and '"shape": null' not in text


@pytest.mark.parametrize("name", [*NAMES, "Harden and Export"])
def test_every_node_has_the_inputs_and_outputs_of_its_schema(root, schemas, name):
    (path,) = [*root.glob(f"example_workflows/{name}.json"), *root.glob(f"subgraphs/{name}.json")]
    nodes = ours(json.loads(path.read_text(encoding="utf-8")))
    assert nodes
    for node in nodes:
        schema = schemas[node["type"]]
        assert {item["name"] for item in node.get("inputs", [])} <= set(sockets(schema))
        outputs = [item["name"] for item in node.get("outputs", [])]
        assert outputs == [item.display_name for item in schema.outputs]


@pytest.mark.parametrize("name", NAMES)
def test_links_join_sockets_of_one_type(root, name):
    workflow = json.loads((root / f"example_workflows/{name}.json").read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for _, start, out, end, place, kind in workflow["links"]:
        assert nodes[start]["outputs"][out]["type"] == kind
        assert kind in (nodes[end]["inputs"][place]["type"], "*") or kind == "*"


WIDGETS = {"Int", "Float", "Boolean", "String", "Combo", "DynamicCombo"}


def fits(item, value):
    """True if a widget of an input takes a value."""
    options = item.options.get("options") or []
    if item.kind in ("Int", "Float"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and item.options["min"] <= value <= item.options["max"]
    if item.kind == "Boolean":
        return isinstance(value, bool)
    if item.kind == "DynamicCombo":
        return value in [option.key for option in options]
    if item.kind == "Combo" and not any(str(one).endswith(".safetensors") for one in options):
        return value in options or value.endswith(".safetensors")
    return isinstance(value, str)


@pytest.mark.parametrize("name", [*NAMES, "Harden and Export"])
def test_the_values_of_a_workflow_are_in_the_order_of_the_node_s_widgets(root, schemas, name):
    """A front end gives them out by position: an input that is put between shifts the rest."""
    (path,) = [*root.glob(f"example_workflows/{name}.json"), *root.glob(f"subgraphs/{name}.json")]
    for node in ours(json.loads(path.read_text(encoding="utf-8"))):
        expected = []
        for item in schemas[node["type"]].inputs:
            if item.kind in WIDGETS and not item.options.get("force_input"):
                expected.append((item.id, item))
                if item.id == "seed":
                    expected.append(("control_after_generate", None))
        values = node.get("widgets_values") or []
        assert len(values) <= len(expected), node["type"]
        for (called, item), value in zip(expected, values, strict=False):
            ok = fits(item, value) if item else value in ("fixed", "randomize")
            assert ok, f"{node['type']} {called}: {value!r}"


# The first widgets of each node, as workflows have saved them; new ones are added after them.
SAVED = {
    "ResAlign_HardeningSettings": "preset random_seed resolution rank outer_steps simulate solver "
    "products resilience_weight retain_weight gamma learning_rate precision gradient_checkpointing "
    "varied_images erase_ratio distil_batch teacher teacher_waits optimiser_waits",
    "ResAlign_HardenModel": "checkpoint preview_every preview_prompt show_pictures process device",
    "ResAlign_ResilienceProbe": "preset scorer steps images resolution random_seed sampling_steps",
    "ResAlign_ExportHardenedCheckpoint": "filename source destination overwrite write_from",
    "ResAlign_SaveHardeningLora": "filename destination overwrite",
}


@pytest.mark.parametrize("kind", SAVED)
def test_no_new_input_comes_before_those_of_saved_workflows(schemas, kind):
    found = [item.id for item in schemas[kind].inputs if item.kind in WIDGETS]
    assert found[: len(SAVED[kind].split())] == SAVED[kind].split()
