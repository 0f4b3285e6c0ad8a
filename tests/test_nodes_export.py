"""The export nodes: the right file, rewritten exactly, under a name that harms nothing."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from fakes_comfy import Interrupted, install, load_nodes
from fakes_export import random_adapter

import resalign as ra
from resalign.backend.checkpoint.in_memory import unet_module_names
from resalign.backend.checkpoint.inspect import inspect


@pytest.fixture
def host(monkeypatch, tmp_path):
    found = install(monkeypatch, tmp_path)
    for kind in ("checkpoints", "loras"):
        (tmp_path / "models" / kind).mkdir()
    return found


@pytest.fixture
def nodes(monkeypatch, host):
    return load_nodes(monkeypatch, "export")


@pytest.fixture
def source(tmp_path, host):
    return write_tiny_checkpoint(tmp_path / "models" / "checkpoints" / "model.safetensors")


@pytest.fixture
def run(nodes, source, tmp_path):
    from resalign.nodes.samples import samples_of
    from resalign.nodes.types import HardenedRun

    model = ra.load_checkpoint(source)
    adapter = random_adapter(model.denoiser, ("attention",))
    folder = tmp_path / "run"
    folder.mkdir()
    samples = samples_of(model.denoiser.state_dict(), adapter.modules)
    (folder / "source.json").write_text(json.dumps({"samples": samples}))
    plan = ra.HardeningPlan(concept=ra.Concept("weapons", ("a pistol",)))
    return HardenedRun(
        plan=plan, adapter=adapter, records=(), folder=folder, family="sd1",
        key_map=unet_module_names(model.denoiser.config), source=source,
    )  # fmt: skip


def export(nodes, run, **options):
    return nodes.ExportHardenedCheckpoint.execute(run, **options)


def test_rewrites_the_source_exactly_and_says_what_was_done(nodes, run, source, tmp_path):
    (path,) = export(nodes, run).args
    ra.export_merged(source, run.adapter, tmp_path / "plain.safetensors")

    written, plain = (ra.load_checkpoint(p).denoiser.state_dict()
                      for p in (path, tmp_path / "plain.safetensors"))  # fmt: skip
    assert all(torch.equal(written[name], plain[name]) for name in plain)
    assert inspect(path).hardened["concepts"] == ["weapons"]
    assert path == str(tmp_path / "models/checkpoints/hardened.safetensors")
    assert (tmp_path / "models/checkpoints/hardened.md").is_file()


def test_a_name_in_use_gets_a_number_unless_it_may_be_replaced(nodes, run):
    names = [export(nodes, run).args[0].rsplit("/")[-1] for _ in range(3)]
    assert names == [
        "hardened.safetensors", "hardened_00002.safetensors", "hardened_00003.safetensors"
    ]  # fmt: skip
    assert export(nodes, run, overwrite=True).args[0].endswith("/hardened.safetensors")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "", "a//b", "a\x00b"])
def test_a_name_that_leads_outside_is_refused(nodes, run, name):
    with pytest.raises(ra.ExportError, match="not a file name"):
        export(nodes, run, filename=name)


def test_another_checkpoint_is_refused(nodes, run, tmp_path):
    write_tiny_checkpoint(tmp_path / "models/checkpoints/other.safetensors", seed=5)
    with pytest.raises(ra.ExportError, match="is not the checkpoint that this run hardened"):
        export(nodes, run, source="other.safetensors")


def test_patches_that_no_file_has_are_refused_with_the_way_out(nodes, run):
    with pytest.raises(ra.ExportError, match="'loaded model' in write_from"):
        export(nodes, replace(run, patched=True))


def test_an_unknown_source_is_refused_with_both_ways_out(nodes, run):
    with pytest.raises(ra.ExportError, match=r"choose it in `source`.*'loaded model'"):
        export(nodes, replace(run, source=None))
    assert export(nodes, replace(run, source=None), source="model.safetensors").args


def test_an_interrupt_leaves_no_file(nodes, run, host, tmp_path):
    host.interrupt = True
    with pytest.raises(Interrupted):
        export(nodes, run)
    assert [p.name for p in (tmp_path / "models/checkpoints").iterdir()] == ["model.safetensors"]


def test_the_loaded_model_is_saved_only_when_it_is_the_hardened_one(
    nodes, run, monkeypatch, tmp_path
):
    saved = {}

    def save_checkpoint(path, model, clip, vae, vision, metadata):
        saved.update(path=path, metadata=metadata)
        Path(path).write_text("weights")

    sd = SimpleNamespace(save_checkpoint=save_checkpoint)
    monkeypatch.setitem(__import__("sys").modules, "comfy.sd", sd)
    monkeypatch.setattr(__import__("comfy"), "sd", sd, raising=False)
    model = SimpleNamespace(patches={}, get_model_object=lambda name: object())
    options = {"write_from": "loaded model", "clip": "CLIP", "vae": "VAE"}

    with pytest.raises(ra.ExportError, match="connect model too"):
        export(nodes, run, **options)
    with pytest.raises(ra.ExportError, match="is not the hardened one"):
        export(nodes, run, model=model, **options)
    model.patches = {f"diffusion_model.{name}.weight": [1] for name in run.key_map.values()}
    (path,) = export(nodes, run, model=model, **options).args
    assert saved["path"] != path and Path(path).read_text() == "weights"
    assert all(isinstance(value, str) for value in saved["metadata"].values())


def test_the_lora_holds_the_adapter(nodes, run, tmp_path):
    (path,) = nodes.SaveHardeningLora.execute(run).args
    assert path == str(tmp_path / "models/loras/hardening_lora.safetensors")
    read = ra.load_lora(path)
    assert all(torch.equal(read.tensors[n], t) for n, t in run.adapter.tensors.items())


def test_info_tells_a_hardened_file_from_another(nodes, run, monkeypatch, host):
    info = load_nodes(monkeypatch, "info").LoadHardenedInfo
    before = info.execute("model.safetensors").args[0]
    export(nodes, run)
    after = info.execute("hardened.safetensors").args[0]
    assert "no record" in before and "weapons" in after
    assert info.fingerprint_inputs("model.safetensors") != info.fingerprint_inputs(
        "hardened.safetensors"
    )
