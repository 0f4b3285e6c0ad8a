"""A decision on what a contradictory file predicts reaches every command, node and page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from fakes_comfy import install, load_nodes
from fakes_export import random_adapter
from fakes_webui import FakeHost, write_run

from resalign.backend.checkpoint.detect import decision_needed, detect, detect_as
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.errors import CheckpointError, ConfigError, UndecidedError
from resalign.backend.jobs import try_lora
from resalign.backend.jobs.verify import verify_job
from resalign.backend.model.model import Model
from resalign.backend.plan.attack import LoraFile, MergeAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import to_json
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.probe import ProbeCheckpoint, ProbePlan
from resalign.backend.probe.carry_out import carry_out
from resalign.backend.probe.probe import probe
from resalign.backend.probe.subjects import FileSubject
from resalign.scripts.resalign_webui import forms, measure_forms
from resalign.scripts.resalign_webui import host as hosts
from resalign.scripts.resalign_webui.runs import read_runs

PLAN = HardeningPlan(concepts=(Concept("weapon", ("a gun",)),))
HALF = MergeAttack(name="half")


@pytest.fixture(scope="module")
def torn(tmp_path_factory) -> Path:
    """A file whose marker says v and whose metadata say epsilon."""
    path = tmp_path_factory.mktemp("torn") / "torn.safetensors"
    said = {"modelspec.prediction_type": "epsilon"}
    return write_tiny_checkpoint(path, prediction_type="v_prediction", metadata=said)


@pytest.fixture(scope="module")
def model(torn) -> Model:
    return load_checkpoint(torn, prediction="v")


@pytest.fixture(scope="module")
def hardened(torn, model, tmp_path_factory) -> Path:
    adapter = random_adapter(model.denoiser, ("cross_attention_kv",))
    target = tmp_path_factory.mktemp("hardened") / "hardened.safetensors"
    export_merged(model, adapter, target)
    return target


def test_the_file_alone_is_refused_and_any_knowledge_decides(torn, hardened, tmp_path):
    with pytest.raises(UndecidedError, match="contradicts itself"):
        detect(torn)
    assert detect(torn, otherwise="v").decision == "v"
    assert detect(torn, prediction="epsilon", otherwise="v").decision == "epsilon"
    assert decision_needed(torn, hardened) == "v" and decision_needed(hardened, torn) == ""
    clear = write_tiny_checkpoint(tmp_path / "clear.safetensors")
    assert detect(clear, otherwise="v").decision == "epsilon"
    assert detect_as(clear, "epsilon").decided == "" and detect_as(clear, "").decided == ""
    assert detect_as(clear, "v").decision == "v"  # a host's MODEL overrules the file
    assert detect_as(torn, "v-zsnr").zero_terminal_snr


def test_a_loaded_model_is_exported_as_it_was_loaded(torn, hardened):
    assert detect(hardened).prediction_type == "v_prediction"
    assert all(check.ok is not False for check in verify_job(hardened, probe=False).checks)


def test_a_model_is_merged_with_its_original(torn, model):
    subject = FileSubject(ProbeCheckpoint(name="original", path=str(torn), prediction="v"))
    before = model.denoiser.state_dict()["conv_in.weight"].clone()
    attack = {"seed": 0, "is_original": False, "evaluate_at": print, "on_step": print}
    attack |= {"own": None, "siblings": {}}  # of attacks that train
    with torch.no_grad():
        model.denoiser.conv_in.weight.add_(1)
    with carry_out(model, HALF, None, {"original": subject.checkpoint}, **attack):  # type: ignore[arg-type]
        merged = model.denoiser.state_dict()["conv_in.weight"].clone()
    with torch.no_grad():
        model.denoiser.conv_in.weight.sub_(1)
    torch.testing.assert_close(merged, before + 0.5)


def test_probing_a_loaded_model_passes_its_decision_on(model, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "resalign.backend.probe.probe.run_probe", lambda *_, originals, **__: seen.update(originals)
    )
    probe(model, plan=ProbePlan(concepts=PLAN.concepts, merges=(HALF,)))
    assert seen["original"].decided == "v"


@pytest.mark.parametrize("prediction", ["", "epsilon"])
def test_a_lora_is_tried_on_a_contradictory_original(torn, hardened, monkeypatch, prediction):
    """By itself it predicts what the hardened file does."""
    seen = []

    def draw(opened, *_):
        with opened as model:
            seen.append(model.process.prediction_type)
        return [torch.zeros(3, 8, 8)]

    monkeypatch.setattr(try_lora, "_generate", draw)
    try_lora.try_lora_job(
        torn, LoraFile(path="x"), try_lora.Sampling(prompt="a cat"), hardened=hardened,
        prediction=prediction,
    )  # fmt: skip
    assert seen == [prediction or "v_prediction", "v_prediction"]


# --- ComfyUI -------------------------------------------------------------------------------------


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    host = install(monkeypatch, tmp_path)
    (tmp_path / "models" / "checkpoints").mkdir()
    return host


@pytest.mark.parametrize("said", ["v", "v-zsnr", ""])
def test_comfyui_exports_what_the_model_predicts(comfy, monkeypatch, torn, model, tmp_path, said):
    nodes = load_nodes(monkeypatch, "export")
    from resalign.nodes.samples import samples_of
    from resalign.nodes.types import HardenedRun

    adapter = random_adapter(model.denoiser, ("cross_attention_kv",))
    samples = samples_of(model.denoiser.state_dict(), adapter.modules)
    (tmp_path / "source.json").write_text(json.dumps({"samples": samples}))
    run = HardenedRun(
        plan=PLAN, adapter=adapter, records=(), folder=tmp_path, family="sd1", key_map={},
        source=torn, samples=samples, prediction=said,
    )  # fmt: skip
    if not said:
        with pytest.raises(UndecidedError):
            nodes.ExportHardenedCheckpoint.execute(run)
        return
    (path,) = nodes.ExportHardenedCheckpoint.execute(run).args
    assert detect(path).decision == said


def test_the_model_tells_the_bridge_what_it_predicts(comfy, monkeypatch):
    nodes = load_nodes(monkeypatch, "bridge.model")
    from resalign.backend.families.base.process import (
        discrete_process,
        scaled_linear_alphas_cumprod,
    )

    usual = scaled_linear_alphas_cumprod()
    zero = torch.cat([usual[:-1], torch.tensor([4.8973451890853435e-08])])  # as ComfyUI has it
    found = [
        nodes.process_decision(discrete_process(alphas, kind))
        for alphas in (usual, zero)
        for kind in ("epsilon", "v_prediction")
    ]
    assert found == ["epsilon", "v", "epsilon", "v-zsnr"]


def test_a_run_that_feeds_an_export_is_not_refused_for_its_file(comfy, monkeypatch, torn):
    nodes = load_nodes(monkeypatch, "ahead")
    bridge = nodes.bridge
    monkeypatch.setattr(bridge, "is_patched", lambda model: False)
    monkeypatch.setattr(bridge, "decision_of", lambda model: model)
    prompt = {
        "1": {"class_type": "ResAlign_HardenModel", "inputs": {}},
        "2": {"class_type": nodes.EXPORT, "inputs": {
            "run": ["1", 3], "write_from": "source file", "source": "from the run"}},
    }  # fmt: skip
    hidden = SimpleNamespace(prompt=prompt, unique_id="1")
    nodes.check_exports("v", torn, hidden)
    with pytest.raises(ConfigError, match="contradicts itself"):
        nodes.check_exports("", torn, hidden)


# --- the tab -------------------------------------------------------------------------------------


@pytest.fixture
def tab(tmp_path, torn, hardened) -> FakeHost:
    host = FakeHost(tmp_path)
    for path in (torn, hardened):
        (host.checkpoint_folder() / path.name).symlink_to(path)
    return host


def test_the_tab_has_a_field_that_decides(tab):
    values = {"checkpoint": "torn.safetensors", "concepts": ["weapons"]}
    with pytest.raises(ConfigError, match="contradicts itself"):
        forms.harden_request(values, tab)
    for make in (forms.harden_request, forms.check_request):
        assert make({**values, "prediction": "v"}, tab)["prediction"] == "v"
    kept = {**values, "checkpoint": "hardened.safetensors", "prediction": forms.AS_IT_SAYS}
    assert forms.harden_request(kept, tab)["prediction"] == ""
    with pytest.raises(ConfigError, match="prediction"):
        forms.harden_request({**values, "prediction": "flow"}, tab)
    with pytest.raises(ConfigError, match="demo"):
        forms.harden_request({**values, "checkpoint": hosts.DEMO, "prediction": "v"}, tab)


def test_the_tab_probes_with_the_decision_of_the_run_or_of_the_hardened_file(tab):
    source = tab.checkpoint_folder() / "torn.safetensors"
    run = hosts.runs_folder(tab) / "done"
    write_run(run, to_json(preset_plan("quick", [Concept("cat", ("a cat",))])), str(source), 20)
    job = json.loads((run / "job.json").read_text())
    (run / "job.json").write_text(json.dumps({**job, "prediction": "v-zsnr"}))
    runs = read_runs(hosts.runs_folder(tab))
    by_run = {"probe_run": "done", "original": measure_forms.THE_RUN}
    by_file = {"original": "torn.safetensors", "hardened": "hardened.safetensors",
               "probe_concepts": ["weapons"]}  # fmt: skip
    for values, decided in ((by_run, "v-zsnr"), (by_file, "v")):
        original, other = measure_forms.probe_request(values, tab, runs)["checkpoints"]
        assert original["prediction"] == decided and "prediction" not in other


def test_what_is_no_contradiction_stays_an_error(tmp_path):
    path = write_tiny_checkpoint(
        tmp_path / "flow.safetensors", metadata={"modelspec.prediction_type": "flow"}
    )
    with pytest.raises(CheckpointError, match="flow"):
        detect(path, otherwise="v")
