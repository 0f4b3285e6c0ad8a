"""The export nodes: the right file, rewritten exactly, under a name that harms nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes_bridge import (
    EPS,
    V_PREDICTION,
    Clip,
    ModelPatcher,
    ModelSamplingDiscrete,
    load_lora,
    sampling,
)
from fakes_checkpoint import build_networks, ldm_tensors, write_tiny_checkpoint
from fakes_comfy import Interrupted, install, load_nodes
from fakes_export import random_adapter
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.checkpoint.hashing import tensor_sha256_of
from resalign.backend.checkpoint.header import read_header
from resalign.backend.checkpoint.in_memory import denoiser_modules
from resalign.backend.checkpoint.inspect import inspect
from resalign.backend.families.unet import recognition
from resalign.backend.jobs.verify import verify_job
from resalign.backend.run.records import StepRecord


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
        key_map=denoiser_modules(model.family, model.denoiser.config), source=source,
        samples=samples,
    )  # fmt: skip


def export(nodes, run, **options):
    return nodes.ExportHardenedCheckpoint.execute(run, **options)


def test_rewrites_the_source_exactly_and_says_what_was_done(nodes, run, source, tmp_path):
    said = export(nodes, run)
    (path,) = said.args
    assert said.ui["text"][0].startswith("models/checkpoints/hardened.safetensors: ")
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
    with pytest.raises(ra.ExportError, match=r"not a file name|is empty"):
        export(nodes, run, filename=name)


@pytest.mark.parametrize(
    ("name", "says"),
    [("", "empty"), ("..", "not a file name"), ("漢" * 100, "300 bytes: use 200 at most"),
     ("漢" * 66, True), ("sub/" + "é" * 110, "220 bytes"),
     ("x" * 300, "300 characters"), ("con", "Windows"),
     ("a/LPT1.b", "Windows"), ("sub/name", True), ("hardened.safetensors", True), (None, True)],
)  # fmt: skip
def test_a_bad_name_is_refused_when_the_workflow_is_queued(nodes, name, says):
    for node in (nodes.ExportHardenedCheckpoint, nodes.SaveHardeningLora):
        said = node.validate_inputs(filename=name)
        assert said is True if says is True else says in said


def test_the_longest_name_that_is_taken_can_be_written(nodes, run, tmp_path):
    """With its number, its card and its temporary file."""
    for number in ("", "_00002"):
        (path,) = export(nodes, run, filename="漢" * 66).args
        assert Path(path).name == "漢" * 66 + number + ".safetensors" and Path(path).is_file()
        assert Path(path).with_suffix(".md").is_file()


def test_a_folder_that_cannot_be_made_is_an_error_of_the_name(nodes, run, tmp_path):
    (tmp_path / "models" / "checkpoints" / "taken").write_text("a file")
    with pytest.raises(ra.ExportError, match=r"filename: models/checkpoints/taken/a.safetensors "):
        export(nodes, run, filename="taken/a")


def test_the_places_are_named_before_a_run_and_those_of_older_workflows_are_taken(nodes, root):
    node = nodes.ExportHardenedCheckpoint
    (destination,) = (one for one in node.define_schema().inputs if one.id == "destination")
    hint = (root / "web" / "resalign.js").read_text(encoding="utf-8").split("  export: ")[1]
    for said in (destination.tooltip, hint.split("\n")[0]):
        assert "models/checkpoints" in said and "models/diffusion_models" in said
    for value in ("models", "output", "models/checkpoints", "output/checkpoints", None):
        assert node.validate_inputs("name", value) is True
    assert "choose models or output" in node.validate_inputs("name", "/etc")


def records(*harms):
    return tuple(
        StepRecord(
            step=step,
            harm=harm,
            retain=0.0,
            resilience_weight=0.0,
            retain_weight=0.0,
            learning_rate=1e-4,
            gradient_norm=1.0,
            seconds=0.1,
        )
        for step, harm in enumerate(harms, start=1)
    )


def test_what_is_written_says_where_it_is_and_what_is_beside_it(nodes, run, tmp_path):
    told = export(nodes, run).ui["text"][0]
    card = f"beside it hardened.md, the model card; both in ComfyUI's folder {tmp_path.name}"
    assert "Warning" not in told and card in told.splitlines()
    assert "neither says what a probe found" in told
    assert (tmp_path / "models/checkpoints/hardened.md").is_file()
    told = nodes.SaveHardeningLora.execute(run).ui["text"][0]
    assert told.startswith("models/loras/hardening_lora.safetensors: ") and "no card" in told
    assert [path.name for path in (tmp_path / "models/loras").iterdir()] == [
        "hardening_lora.safetensors"
    ]


def test_an_export_of_a_test_run_or_of_one_that_removed_nothing_begins_with_that(nodes, run):
    users = (ra.FineTuneConfig(name="user", steps=3),)
    short = replace(run.plan, fine_tunes=users, outer_steps=4, warm_up_steps=1)
    nothing = replace(run, records=records(-0.1, -0.1001))
    for tried, words in (
        (replace(run, plan=short), ["test run", "not safe to publish"]),
        (nothing, ["nothing was removed"]),
        (replace(nothing, plan=short), ["test run", "nothing was removed"]),
    ):
        for told in (export(nodes, tried), nodes.SaveHardeningLora.execute(tried)):
            text = told.ui["text"][0]
            assert text.startswith("Warning: ") and all(word in text for word in words)
    some = export(nodes, replace(run, records=records(*[-0.1] * 10, *[-0.4] * 10))).ui["text"][0]
    assert "nothing was removed" not in some


def test_a_file_on_another_disk_is_shown_with_its_whole_path(nodes, run, monkeypatch, tmp_path):
    disk = tmp_path.parent / f"{tmp_path.name} disk"
    monkeypatch.setattr(sys.modules["folder_paths"], "get_folder_paths", lambda kind: [str(disk)])
    said = export(nodes, run).ui["text"][0]
    assert said.startswith(f"{disk.as_posix()}/hardened.safetensors: ")


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


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """MODELs as ComfyUI has them, and its saving: tensors, and metadata as they are given."""

    def save_checkpoint(path, model, clip, vae, vision, metadata):
        save_file(model.tensors, path, metadata=metadata)

    sd = SimpleNamespace(save_checkpoint=save_checkpoint, load_lora_for_models=load_lora)
    monkeypatch.setitem(sys.modules, "comfy.sd", sd)
    monkeypatch.setattr(sys.modules["comfy"], "sd", sd, raising=False)

    def build(family, variant, *kinds):
        monkeypatch.setattr(recognition, "CONTEXT_WIDTHS", {32: variant})
        tensors = {
            name.removeprefix("model."): tensor.clone()
            for name, tensor in ldm_tensors(build_networks(family), family).items()
            if name.startswith("model.diffusion_model.")
        }
        model = ModelPatcher(tensors)
        model.sampling = sampling(ModelSamplingDiscrete, *kinds)
        return model

    return build


LOADED = {"write_from": "loaded model", "clip": Clip({"clip_l.w": torch.ones(4)}), "vae": "VAE"}


def hardened(model, run, strength=1.0):
    """The MODEL with the run's adapter on it, as Harden Model returns it."""
    from resalign.nodes import bridge

    return load_lora(
        model, None, bridge.lora_model(run.adapter, bridge.places_of(model)), strength, 0
    )[0]


def of_model(run, model):
    """The run, as Harden Model returns it for this MODEL."""
    from resalign.nodes import bridge

    return replace(run, weights=bridge.weights_of(model, LOADED["clip"]))


def test_the_loaded_model_is_saved_only_when_it_is_the_hardened_one(nodes, run, loaded):
    model = loaded("sd1", "plain", EPS)
    run = of_model(run, model)

    with pytest.raises(ra.ExportError, match="connect model too"):
        export(nodes, run, **LOADED)
    with pytest.raises(ra.ExportError, match="is not the hardened one"):
        export(nodes, run, model=model, **LOADED)
    (path,) = export(nodes, run, model=hardened(model, run), **LOADED).args
    assert set(read_header(path).tensors) == set(model.tensors)
    assert not list(Path(path).parent.glob("*.resalign-partial"))


def another_lora(model, run):
    """A LoRA over the same modules with other tensors."""
    tensors = {name: tensor + 0.01 for name, tensor in run.adapter.tensors.items()}
    return hardened(model, replace(run, adapter=replace(run.adapter, tensors=tensors)))


def at_half_strength(model, run):
    return hardened(model, run, strength=0.5)


def twice(model, run):
    return hardened(hardened(model, run), run)


def a_lora_on_top(model, run):
    return another_lora(hardened(model, run), run)


def a_patch_elsewhere(model, run):
    model = hardened(model, run)
    model.patches["diffusion_model.out.2.weight"] = [(1.0, torch.ones(1))]
    return model


def of_another_checkpoint(model, run):
    other = hardened(model, run)
    other.tensors = {name: tensor * 1.01 for name, tensor in other.tensors.items()}
    return other


def wrapped(model, run):
    model = hardened(model, run)
    model.model_options["sampler_cfg_function"] = print
    return model


WRONG = {
    another_lora: "as the last one", at_half_strength: "as the last one",
    twice: "other weights or patches", a_lora_on_top: "as the last one",
    a_patch_elsewhere: "other weights or patches",
    of_another_checkpoint: "other weights or patches", wrapped: "changes how the MODEL runs",
}  # fmt: skip


def test_no_other_model_is_written_under_the_name_of_the_run(nodes, run, loaded, tmp_path):
    model = loaded("sd1", "plain", EPS)
    run = of_model(run, model)

    for wrong, says in WRONG.items():
        with pytest.raises(ra.ResAlignError, match=says):
            export(nodes, run, model=wrong(model, run), **LOADED)
    assert [p.name for p in (tmp_path / "models/checkpoints").iterdir()] == ["model.safetensors"]


def test_another_clip_is_refused(nodes, run, loaded):
    model = loaded("sd1", "plain", EPS)
    run = of_model(run, model)
    other = LOADED | {"clip": Clip({"clip_l.w": torch.zeros(4)})}
    with pytest.raises(ra.ExportError, match="CLIP connected is not the one"):
        export(nodes, run, model=hardened(model, run), **other)


def test_a_run_of_an_earlier_version_is_compared_by_its_samples(nodes, run, loaded):
    """Its folder does not hold fingerprints, only values of a few weights."""
    model = loaded("sd1", "plain", EPS)
    assert not run.weights and run.samples
    assert export(nodes, run, model=hardened(model, run), **LOADED).args
    with pytest.raises(ra.ExportError, match="has other weights"):
        export(nodes, run, model=of_another_checkpoint(model, run), **LOADED)


@pytest.mark.parametrize(
    ("family", "variant", "kinds", "architecture", "side", "predicts"),
    [
        ("sd1", "plain", (EPS,), "stable-diffusion-v1", 512, "epsilon"),
        ("sd2", "linear", (EPS,), "stable-diffusion-v2-512", 512, "epsilon"),
        ("sd2", "linear", (V_PREDICTION,), "stable-diffusion-v2-768-v", 768, "v"),
    ],
)
def test_a_loaded_model_says_what_it_is_and_what_its_tensors_are(
    nodes, run, loaded, family, variant, kinds, architecture, side, predicts
):
    """SD 2 that predicts v has 768 pixels; the hash is that of the tensors as they were saved."""
    model = loaded(family, variant, *kinds)
    run = of_model(run, model)
    model = hardened(model, run)

    (path,) = export(nodes, run, model=model, **LOADED).args

    told = read_header(path).metadata
    assert told["modelspec.architecture"] == architecture
    assert told["modelspec.resolution"] == f"{side}x{side}"
    assert told["modelspec.prediction_type"] == predicts
    assert told["modelspec.hash_sha256"] == "0x" + tensor_sha256_of(Path(path))
    tensors, *_ = verify_job(Path(path), probe=False).checks
    assert tensors.ok is True, "verify finds the tensors as recorded"
    assert torch.equal(load_file(path)["diffusion_model.out.2.bias"],
                       model.tensors["diffusion_model.out.2.bias"])  # fmt: skip


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
