"""A MODEL, a file and a report are called hardened only if their tensors are."""

import importlib
from dataclasses import replace

import fakes_bridge as fakes
import pytest
import torch
from fakes_bridge import load_lora
from fakes_checkpoint import write_tiny_checkpoint
from fakes_probe import fake_result

from resalign.backend.adapter.lora import Adapter
from resalign.backend.errors import ConfigError, ExportError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.probe.recorded import check_adapter
from resalign.backend.probe.results import ModelInfo
from resalign.backend.probe.results_io import same_models
from resalign.backend.probe.subjects import adapter_digest

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def bridge(monkeypatch, tmp_path):
    return fakes.bridge(monkeypatch, tmp_path)[0]


@pytest.fixture
def provenance(bridge):
    return importlib.import_module("resalign.nodes.provenance")


@pytest.fixture
def model():
    return fakes.host_parts()[0]


def adapter(value=1.0):
    tensors = {Q + ".lora_A.weight": torch.full((2, 32), value),
               Q + ".lora_B.weight": torch.full((32, 2), 0.5)}  # fmt: skip
    return Adapter(tensors, 2, 1.0)


def hardened(bridge, model):
    """The MODEL as Harden Model returns it."""
    lora = bridge.lora_model(adapter(), bridge.places_of(model))
    patched = bridge.with_adapter(model, lora)
    bridge.mark(patched, lora, bridge.fingerprint(model))
    return patched


def other_lora(bridge, model, module=Q):
    names = bridge.key_map(model)
    own = "diffusion_model." + names[module]
    side = model.tensors[own + ".weight"].shape
    lora = {own + ".alpha": torch.tensor(1.0), own + ".lora_up.weight": torch.ones(side[0], 1),
            own + ".lora_down.weight": torch.ones(1, side[1])}  # fmt: skip
    return load_lora(model, None, lora, 1.0, 1.0)[0]


def test_a_model_is_hardened_only_while_its_patches_are_those_of_the_run(bridge, provenance, model):
    made = hardened(bridge, model)
    assert provenance.is_hardened(made) and provenance.is_hardened(made.clone())
    assert not provenance.is_hardened(model)
    assert not provenance.is_hardened(other_lora(bridge, model)), "some LoRA over its modules"
    assert not provenance.is_hardened(other_lora(bridge, made)), "on top, over the same modules"
    elsewhere = Q.replace("to_q", "to_v")
    assert not provenance.is_hardened(other_lora(bridge, made, elsewhere)), "on top, elsewhere"
    weaker = made.clone()
    weaker.patches = {k: [(0.5, change)] for k, [(_, change)] in made.patches.items()}
    assert not provenance.is_hardened(weaker)


def test_the_pictures_of_try_my_lora_are_called_what_they_are(bridge, model):
    called = importlib.import_module("resalign.nodes.both_models").called
    made = hardened(bridge, model)

    columns, said = called(model, made)
    assert columns == ("original + LoRA", "hardened + LoRA") and "Warning" not in said
    columns, said = called(model, model.clone())
    assert columns[1] == "after = before" and "same MODEL" in said and "bypassed" in said
    columns, said = called(model, other_lora(bridge, model))
    assert columns[1] == "after + LoRA" and "not known to be hardened" in said
    columns, said = called(made, model)
    assert columns == ("before + LoRA", "after + LoRA") and "`before` is hardened" in said


def test_the_file_that_is_named_must_hold_the_model(bridge, provenance, model, tmp_path):
    own = write_tiny_checkpoint(tmp_path / "own.safetensors")
    other = write_tiny_checkpoint(tmp_path / "other.safetensors", seed=5)
    provenance.check_source(model, own)
    provenance.check_source(other_lora(bridge, model), own)  # below its patches
    with pytest.raises(ConfigError, match=r"not loaded from other.safetensors.*choose its own"):
        provenance.check_source(model, other)


def test_a_probe_of_two_equal_models_says_so():
    def named(name, weights):
        return ModelInfo(name=name, method=f"weights {weights}")

    assert same_models([named("original", "a"), named("after", "b")]) == ()
    (said,) = same_models([named("original", "a"), named("after", "a")])
    assert said.startswith("original and after are the same model")
    files = [ModelInfo(name=name, sha256="0f", method="ResAlign") for name in ("one", "two")]
    assert len(same_models(files)) == 1
    assert same_models([ModelInfo(name="a"), ModelInfo(name="b")]) == (), "nothing is known"


def report_of(provenance, tmp_path, method):
    result = fake_result(tmp_path)
    models = (*result.models[:-1], replace(result.models[-1], method=method))
    values = importlib.import_module("resalign.nodes.types")
    return values.ReportValue(tmp_path, replace(result, models=models))


@pytest.mark.slow
def test_figures_of_another_run_are_not_written_into_a_file(provenance, tmp_path):
    values = importlib.import_module("resalign.nodes.types")
    run = values.HardenedRun(
        plan=HardeningPlan(concept=Concept("weapons", ("a pistol",))), adapter=adapter(),
        records=(), folder=tmp_path, family="sd1", key_map={},
    )  # fmt: skip
    for kind in ("adapter in memory", "adapter of a run"):
        own = report_of(provenance, tmp_path, f"{kind}, {adapter_digest(adapter())}")
        provenance.check_report(own, run)
        other = report_of(provenance, tmp_path, f"{kind}, {adapter_digest(adapter(2.0))}")
        with pytest.raises(ExportError, match=r"measured another run.*connect the `run`"):
            provenance.check_report(other, run)
        with pytest.raises(ExportError, match="another adapter"):
            check_adapter(other.result, adapter())
    unknown = report_of(provenance, tmp_path, "weights 0123456789ab")
    with pytest.raises(ExportError, match="does not say which adapter"):
        provenance.check_report(unknown, run)
    check_adapter(unknown.result, adapter())  # of files, on the command line
    twice = tuple(replace(m, sha256="0f", method="") for m in own.result.models)
    equal = replace(own, result=replace(own.result, models=twice))
    with pytest.raises(ExportError, match="are the same model"):
        provenance.check_report(equal, run)


def test_an_export_refuses_the_report_of_another_run_and_writes_nothing(provenance, tmp_path):
    values = importlib.import_module("resalign.nodes.types")
    node = importlib.import_module("resalign.nodes.export").ExportHardenedCheckpoint
    run = values.HardenedRun(
        plan=HardeningPlan(concept=Concept("weapons", ("a pistol",))), adapter=adapter(),
        records=(), folder=tmp_path, family="sd1", key_map={},
    )  # fmt: skip
    result = fake_result()
    other = replace(result.models[-1], method=f"adapter of a run, {adapter_digest(adapter(2.0))}")
    report = values.ReportValue(tmp_path, replace(result, models=(result.models[0], other)))
    with pytest.raises(ExportError, match=r"measured another run.*connect the `run`"):
        node.execute(run, report=report)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_probe_of_a_run_refuses_a_model_that_the_run_did_not_harden(
    bridge, provenance, model, tmp_path
):
    probe = importlib.import_module("resalign.nodes.probe").ResilienceProbe
    values = importlib.import_module("resalign.nodes.types")
    _, clip, vae = fakes.host_parts()
    run = values.HardenedRun(
        plan=HardeningPlan(concept=Concept("weapons", ("a pistol",))), adapter=adapter(),
        records=(), folder=tmp_path, family="sd1", key_map=bridge.key_map(model),
        weights=bridge.weights_of(model, clip),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="`before` is not the MODEL that the run hardened"):
        probe.execute(hardened(bridge, model), clip, vae, run=run)
    assert provenance.other_model(model, run) == ""
