"""After an export no unhardened copy of the denoiser is left in the result, unless it is named."""

import json
import os
import shutil
from copy import deepcopy

import pytest
import torch
from fakes_checkpoint import build_networks, write_tiny_checkpoint, write_tiny_folder
from fakes_export import random_adapter, with_adapter
from safetensors.torch import load_file, save_file

from resalign.backend.checkpoint.detect import detect
from resalign.backend.checkpoint.export.copies import copies_of
from resalign.backend.checkpoint.header import read_header
from resalign.backend.checkpoint.inspect import inspect
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.checkpoint.metadata import PREFIX
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.errors import CheckpointError, ExportError
from resalign.backend.jobs.verify import verify_job
from resalign.backend.report.card import model_card

UNET = "model.diffusion_model."
EXTRA = {
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.num_updates": torch.tensor(5, dtype=torch.int32),
}


def averages(tensors, change=0.01):
    """A moving average of every tensor of the U-Net, in float32, a little beside it."""
    random = torch.Generator().manual_seed(7)
    return {
        "model_ema." + name[6:].replace(".", ""): tensor.float()
        + change * torch.randn(tensor.shape, generator=random)
        for name, tensor in tensors.items()
        if name.startswith(UNET)
    }


@pytest.fixture(scope="module")
def unet():
    return build_networks("sd1")["unet"]


@pytest.fixture(scope="module")
def adapter(unet):
    return random_adapter(unet, ("cross_attention_kv",))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("plain") / "plain.safetensors")


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, plain):
    """A file as trainers of Latent Diffusion write it, and its tensors."""
    extra = averages(load_file(plain)) | EXTRA
    path = tmp_path_factory.mktemp("ema") / "full.safetensors"
    return write_tiny_checkpoint(path, extra=extra)


@pytest.fixture(scope="module")
def exported(averaged, adapter, tmp_path_factory):
    target = tmp_path_factory.mktemp("out") / "hardened.safetensors"
    return target, export_merged(averaged, adapter, target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("folder") / "base")


def test_moving_averages_get_the_change_of_the_weights_that_they_average(
    averaged, exported, adapter, unet
):
    """With `extract_ema`, diffusers reads the average plus ΔW from the hardened file."""
    from diffusers.pipelines.stable_diffusion.convert_from_ckpt import convert_ldm_unet_checkpoint

    config = dict(load_checkpoint(averaged).denoiser.config)

    def average_in(path):
        tensors = load_file(path)
        return convert_ldm_unet_checkpoint(tensors, config, path="x", extract_ema=True)

    before, after = average_in(averaged), average_in(exported[0])

    assert before.keys() == after.keys() == unet.state_dict().keys()
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        change = adapter.delta(module) if module in adapter.modules else torch.zeros(())
        torch.testing.assert_close(after[name], tensor + change, msg=name)


def test_report_card_header_and_inspection_name_the_averages(averaged, exported):
    target, report = exported
    count = len(averages(load_file(averaged)))
    record = {"where": "model_ema.*", "fate": "hardened", "tensors": count}

    assert [copy.to_json() for copy in report.copies] == [record]
    assert "model_ema.*" in report.warnings[-1]
    assert json.loads(read_header(target).metadata[PREFIX + "copies"]) == [record]
    assert "| Further copies of the denoiser | `model_ema.*` hardened |" in model_card(
        report.provenance, report=report
    )
    assert f"copies          model_ema.* ({count} tensors): hardened" in str(inspect(target))
    assert f"copies          model_ema.* ({count} tensors): will be hardened" in str(
        inspect(averaged)
    )
    assert report.touched == report.provenance.touched_tensors


def test_an_export_without_copies_says_nothing_of_them(plain, adapter, tmp_path):
    report = export_merged(plain, adapter, tmp_path / "out.safetensors")

    assert not report.copies and not report.warnings
    assert PREFIX + "copies" not in read_header(tmp_path / "out.safetensors").metadata
    assert "Further copies" not in model_card(report.provenance, report=report)


def by_name(verified):
    return {check.name: check for check in verified.checks}


def test_verify_compares_averages_with_the_source(averaged, exported, adapter):
    checks = by_name(verify_job(exported[0], source=averaged, probe=False))

    assert checks["untouched tensors"].ok and checks["other copies"].ok
    assert "changed as the denoiser did" in checks["other copies"].detail
    verify_export(averaged, exported[0], adapter)


@pytest.mark.parametrize("record", [True, False])
def test_verify_finds_averages_that_were_not_hardened(averaged, exported, tmp_path, record):
    """As earlier versions wrote them, with or without a record that says otherwise."""
    old, tensors = load_file(averaged), load_file(exported[0])
    tensors |= {name: old[name] for name in tensors if name.startswith("model_ema.")}
    said = dict(read_header(exported[0]).metadata)
    if not record:
        del said[PREFIX + "copies"]
    path = tmp_path / "old.safetensors"
    save_file(tensors, path, metadata=said)

    assert by_name(verify_job(path, source=averaged, probe=False))["other copies"].ok is False
    if not record:
        assert by_name(verify_job(path, probe=False))["other copies"].ok is False
        assert "not hardened" in str(inspect(path))


def test_verify_finds_averages_that_changed_otherwise(averaged, exported, tmp_path):
    tensors = load_file(exported[0])
    name = next(n for n in tensors if n.startswith("model_ema.") and "attn2to_k" in n)
    tensors[name] = tensors[name] * 1.01
    path = tmp_path / "other.safetensors"
    save_file(tensors, path, metadata=read_header(exported[0]).metadata)

    found = by_name(verify_job(path, source=averaged, probe=False))["other copies"]

    assert found.ok is False and name in found.detail


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ema.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "second"),
        ("model_ema.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight", "second"),
        ("model_ema.diffusion_modelinput_blocks00weight", "shape"),
    ],
)
def test_a_second_denoiser_that_cannot_be_mapped_is_refused_before_any_work(
    plain, adapter, tmp_path, name, why
):
    path = tmp_path / "odd.safetensors"
    save_file(load_file(plain) | {name: torch.zeros(3, 3)}, path, metadata={
        "resalign.config": '{"unet": {"sample_size": 8}}'
    })  # fmt: skip

    for use in (load_checkpoint, lambda p: export_merged(p, adapter, tmp_path / "out.safetensors")):
        with pytest.raises(CheckpointError, match=why):
            use(path)
    assert not inspect(path).supported and why in inspect(path).problem


# --- folders -----------------------------------------------------------------------------------


def strew(source):
    """Put copies of the U-Net wherever people and programs leave them; return those to be gone."""
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"
    whole = write_tiny_checkpoint(source / "model.SAFETENSORS.bak")
    gone = {"model.SAFETENSORS.bak"}
    for name in (
        "checkpoint-500/unet/diffusion_pytorch_model.safetensors",
        "unet_ema/diffusion_pytorch_model.safetensors",
        "unet/backup/diffusion_pytorch_model.safetensors",
        "old stuff/weights.dat",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(weights, source / name)
        gone.add(name)
    for name in ("original/model.safetensors", "original/v1.yaml"):
        (source / name).parent.mkdir(exist_ok=True)
        os.link(whole, source / name)
        gone.add(name)
    for name, content in {
        "unet/diffusion_pytorch_model.bin": b"\x80\x02pickle",
        "unet/model.onnx": b"onnx",
        "checkpoint-500/optimizer.pt": b"PK\x03\x04",
        "unet.zip": b"PK\x03\x04",
        "text_encoder/pytorch_model.bin": b"\x80\x02pickle",
        "vae/unet.ckpt": b"PK\x03\x04",
        "vae/notes.PT": b"anything",
        "anything": b"GGUF",
    }.items():
        (source / name).write_bytes(content)
        gone.add(name)
    tensors = load_file(weights)
    some = {name: tensors[name] for name in list(tensors)[: len(tensors) // 2]}
    save_file(some, source / "unet" / "diffusion_pytorch_model.old.safetensors")
    return gone | {"unet/diffusion_pytorch_model.old.safetensors"}


def test_no_copy_anywhere_in_a_folder_stays_unhardened(folder, adapter, unet, tmp_path):
    source = shutil.copytree(folder, tmp_path / "base")
    gone = strew(source)
    half = {n: t.half() for n, t in load_file(
        source / "unet" / "diffusion_pytorch_model.safetensors").items()}  # fmt: skip
    save_file(half, source / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    (source / "README.md").write_text("card")
    save_file({"lora_te_x.alpha": torch.ones(1)}, source / "style.safetensors")
    target = tmp_path / "out"

    report = export_merged(source, adapter, target)

    left = {copy.where for copy in report.copies if copy.fate == "left out"}
    assert left == gone
    assert not any((target / name).exists() for name in gone)
    for name in ("README.md", "style.safetensors"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    expected = with_adapter(deepcopy(unet), adapter).state_dict()
    for name in ("", ".non_ema"):
        found = load_file(target / "unet" / f"diffusion_pytorch_model{name}.safetensors")
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key].float(), tensor, rtol=1e-3, atol=1e-3)
    assert json.loads((target / "resalign.json").read_text())["provenance"]["copies"] == [
        {"where": "unet/diffusion_pytorch_model.non_ema.safetensors", "fate": "hardened",
         "tensors": len(half)},
    ]  # fmt: skip
    checks = by_name(verify_job(target, source=source, probe=False))
    assert checks["untouched tensors"].ok and checks["other copies"].ok


def test_a_hardened_folder_to_which_a_copy_is_added_fails_verification(folder, adapter, tmp_path):
    target = tmp_path / "out"
    export_merged(folder, adapter, target)
    assert by_name(verify_job(target, source=folder, probe=False))["other copies"].ok
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"

    shutil.copyfile(weights, target / "unet" / "diffusion_pytorch_model.fp16.safetensors")

    found = by_name(verify_job(target, probe=False))["other copies"]
    assert found.ok is False and "fp16" in found.detail


def test_parts_of_the_denoiser_in_another_component_are_kept_and_named(folder, adapter, tmp_path):
    """A ControlNet begins as a copy of half the U-Net, and the pipeline needs it."""
    source = shutil.copytree(folder, tmp_path / "base")
    tensors = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    (source / "controlnet").mkdir()
    file = source / "controlnet" / "diffusion_pytorch_model.safetensors"
    save_file({n: t for n, t in tensors.items() if n.startswith("down_blocks")}, file)
    index = json.loads((source / "model_index.json").read_text())
    index["controlnet"] = ["diffusers", "ControlNetModel"]
    (source / "model_index.json").write_text(json.dumps(index))

    report = export_merged(source, adapter, tmp_path / "out")

    place = file.relative_to(source)
    assert (tmp_path / "out" / place).read_bytes() == file.read_bytes()
    assert [(copy.where, copy.fate) for copy in report.copies] == [(place.as_posix(), "kept")]
    assert place.as_posix() in report.warnings[-1]
    assert by_name(verify_job(tmp_path / "out", source=source, probe=False))["other copies"].ok


def test_files_that_cannot_be_opened_are_kept_and_named_where_a_component_has_no_others(
    folder, adapter, tmp_path
):
    """Old folders have their safety checker as a pickle alone; a scheduler needs no weights."""
    source = shutil.copytree(folder, tmp_path / "base")
    names = ["safety_checker/pytorch_model.bin", "scheduler/unet.bin"]
    index = json.loads((source / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (source / "model_index.json").write_text(json.dumps(index))
    for name in names:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"\x80\x02pickle")

    report = export_merged(source, adapter, tmp_path / "out")

    record = [{"where": name, "fate": "kept", "tensors": 0} for name in names]
    assert [copy.to_json() for copy in report.copies] == record
    assert all(name in report.warnings[-1] for name in names)
    assert "without being opened" in report.warnings[-1]
    header = json.loads((tmp_path / "out" / "resalign.json").read_text())
    assert header["provenance"]["copies"] == record
    card = model_card(report.provenance, report=report)
    assert f"`{names[0]}` kept unopened, `{names[1]}` kept unopened" in card
    checks = by_name(verify_job(tmp_path / "out", source=source, probe=False))
    assert checks["untouched tensors"].ok and checks["other copies"].ok
    assert "kept unopened" in checks["other copies"].detail
    (tmp_path / "out" / "vae" / "unet.bin").write_bytes(b"\x80\x02pickle")
    found = by_name(verify_job(tmp_path / "out", probe=False))["other copies"]
    assert found.ok is False and "vae/unet.bin" in found.detail


def test_linked_component_folders_are_copied_and_averages_as_a_component_hardened(
    folder, adapter, tmp_path
):
    source = shutil.copytree(folder, tmp_path / "base")
    shutil.move(source / "vae", tmp_path / "vae")
    (source / "vae").symlink_to(tmp_path / "vae")
    (source / "loop").symlink_to(source)
    shutil.copytree(source / "unet", source / "unet_ema")
    index = json.loads((source / "model_index.json").read_text())
    index["unet_ema"] = index["unet"]
    (source / "model_index.json").write_text(json.dumps(index))

    report = export_merged(source, adapter, tmp_path / "out")

    own, other = (
        load_file(tmp_path / "out" / name / "diffusion_pytorch_model.safetensors")
        for name in ("unet", "unet_ema")
    )
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert report.touched == 2 * len(adapter.modules)
    assert (tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    detect(tmp_path / "out")


def test_the_index_of_shards_that_are_left_out_stays_behind_too(folder, adapter, tmp_path):
    source = shutil.copytree(folder, tmp_path / "base")
    shard = "diffusion_pytorch_model.fp16-00001-of-00002.safetensors"
    tensors = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(dict(list(tensors.items())[:20]), source / "unet" / shard)
    index = source / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(list(tensors)[:20], shard)}))

    export_merged(source, adapter, tmp_path / "out")

    assert not (tmp_path / "out" / "unet" / shard).exists()
    assert not (tmp_path / "out" / "unet" / index.name).exists()


def test_the_check_names_copies_before_any_weight_is_loaded(folder, averaged, tmp_path):
    from resalign.backend.jobs.check import check_job
    from resalign.backend.plan.concept import Concept
    from resalign.backend.plan.hardening import HardeningPlan
    from resalign.backend.plan.job import Job

    plan = HardeningPlan(concepts=(Concept("a", ("a gun",)),))

    def check(path):
        job = Job(checkpoint=str(path), output=str(tmp_path / "out.safetensors"), plan=plan)
        return check_job(job)

    assert any("model_ema.*" in text for text in check(averaged).warnings)
    source = shutil.copytree(folder, tmp_path / "base")
    strew(source)
    assert any("unet/backup" in text and "left out" in text for text in check(source).warnings)
    assert {copy.fate for copy in copies_of(detect(source))} == {"left out"}


def test_a_variant_whose_types_cannot_be_changed_is_left_out(folder, adapter, tmp_path):
    source = shutil.copytree(folder, tmp_path / "base")
    tensors = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    name = "diffusion_pytorch_model.int8.safetensors"
    save_file({n: t.to(torch.int8) for n, t in tensors.items()}, source / "unet" / name)

    export_merged(source, adapter, tmp_path / "out")

    assert not (tmp_path / "out" / "unet" / name).exists()
    shutil.copyfile(source / "unet" / name, tmp_path / "out" / "unet" / name)
    with pytest.raises(ExportError, match="may hold the unhardened"):
        verify_export(source, tmp_path / "out")
