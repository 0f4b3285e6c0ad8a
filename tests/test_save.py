"""Exports: the source with the adapter in it, and nothing else changed."""

import hashlib
import json
import os

import pytest
import torch
from fakes_checkpoint import build_networks, config_folder, write_tiny_checkpoint
from fakes_export import prediction, random_adapter, save_fixtures, with_adapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from resalign.backend.adapter.lora import Adapter
from resalign.backend.checkpoint.detect import detect
from resalign.backend.checkpoint.header import read_header
from resalign.backend.checkpoint.metadata import Provenance
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.errors import ExportError

unet, adapter, source = save_fixtures()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_diffusers_reads_it_back_and_predicts_what_the_adapter_did(unet, adapter, source, tmp_path):
    """`from_single_file`, offline: within 1e-5 of ΔW in memory; text encoder and VAE bit-equal."""
    from diffusers import StableDiffusionPipeline

    export_merged(source, adapter, tmp_path / "out.safetensors")
    config = config_folder(detect(tmp_path / "out.safetensors"), tmp_path / "config")

    pipeline = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "out.safetensors"), config=str(config), local_files_only=True
    )

    networks = build_networks("sd1")
    expected = prediction(with_adapter(networks["unet"], adapter))
    assert (prediction(pipeline.unet) - expected).abs().max() <= 1e-5
    assert (prediction(unet) - expected).abs().max() > 1e-2
    for name in ("vae", "text_encoder"):
        found = dict(getattr(pipeline, name).named_parameters())
        for key, tensor in networks[name].named_parameters():
            assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_each_type_is_kept_and_each_other_byte_too(adapter, dtype, tmp_path):
    """The touched tensors are round(W + ΔW) in their own type, and only they differ."""
    source = write_tiny_checkpoint(tmp_path / "base.safetensors", dtype=dtype)

    report = export_merged(source, adapter, tmp_path / "out.safetensors")

    found = verify_export(source, tmp_path / "out.safetensors", adapter)
    header = read_header(source)
    assert len(found.changed) == report.touched == len(adapter.modules)
    assert len(found.identical) == report.untouched == len(header.tensors) - report.touched
    assert {header.tensors[name].dtype for name in found.changed} == {
        {torch.float16: "F16", torch.bfloat16: "BF16"}.get(dtype, "F8_E4M3")
    }
    old, new = load_file(source), load_file(tmp_path / "out.safetensors")
    name = "model.diffusion_model.middle_block.0.in_layers.2.weight"  # a convolution
    delta = adapter.delta("mid_block.resnets.0.conv1")
    assert torch.equal(new[name].float(), (old[name].float() + delta).to(dtype).float())


@pytest.mark.slow
def test_sdxl_has_all_its_modules_changed(tmp_path):
    """With transformers ten deep, and both text encoders left as they are."""
    unet = build_networks("sdxl")["unet"]
    source = write_tiny_checkpoint(tmp_path / "base.safetensors", "sdxl")
    adapter = random_adapter(unet)

    report = export_merged(source, adapter, tmp_path / "out.safetensors")

    changed = verify_export(source, tmp_path / "out.safetensors", adapter).changed
    assert report.touched == len(changed) == len(adapter.modules) > 500
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        about = file.metadata()
    assert about["modelspec.architecture"] == "stable-diffusion-xl-v1-base"


def test_the_data_keep_their_place_and_order(adapter, source, tmp_path):
    """Same names, order, types, shapes and offsets: only the header before the data grows."""
    export_merged(source, adapter, tmp_path / "out.safetensors")
    old, new = read_header(source), read_header(tmp_path / "out.safetensors")
    assert list(old.tensors.items()) == list(new.tensors.items())
    assert new.data_start % 8 == 0


def test_hashes_are_those_of_the_bytes_on_disk(adapter, source, tmp_path):
    """Hashes of both files and of the bytes after the headers; the header holds no stale hash."""
    target = tmp_path / "out.safetensors"
    report = export_merged(source, adapter, target, hash_file=True)

    header = read_header(target)
    about = header.metadata
    assert report.source_sha256 == sha256(source.read_bytes()) == about["resalign.source_sha256"]
    assert report.sha256 == sha256(target.read_bytes())
    short = export_merged(source, adapter, tmp_path / "short.safetensors")
    assert short.sha256 == "" and short.tensor_sha256 == report.tensor_sha256
    assert report.bytes == target.stat().st_size
    tensors = sha256(target.read_bytes()[header.data_start :])
    assert about["modelspec.hash_sha256"] == "0x" + tensors and report.tensor_sha256 == tensors
    assert "sshs_model_hash" not in about


def test_the_header_keeps_the_sources_words_and_adds_ours(adapter, source, tmp_path):
    """ModelSpec's required fields, and provenance that reads back equal."""
    target = tmp_path / "out.safetensors"
    given = Provenance(
        concepts=("weapons", "naïve | `name`"), plan_sha256="ab", seed=7, training={"steps": 3}
    )
    report = export_merged(source, adapter, target, provenance=given)

    about = read_header(target).metadata
    assert about["author"] == "somebody" and "resalign.config" in about
    assert about["modelspec.sai_model_spec"] == "1.0.1"
    assert about["modelspec.architecture"] == "stable-diffusion-v1"
    assert about["modelspec.resolution"] == "64x64"
    assert about["modelspec.prediction_type"] == "epsilon"
    assert about["modelspec.title"] == "base (hardened)"
    assert about["resalign.probe"] == "not measured"
    found = Provenance.from_metadata(about)
    assert found == report.provenance
    assert found.concepts == given.concepts and found.touched_tensors == len(adapter.modules)
    assert Provenance.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert not any(str(tmp_path) in value for value in about.values())


def test_hardening_twice_keeps_the_first_record(adapter, source, tmp_path):
    """The earlier block moves to `resalign.previous`; the title is not lengthened again."""
    once, twice = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    export_merged(source, adapter, once, provenance=Provenance(concepts=("a",)))
    export_merged(once, adapter, twice, provenance=Provenance(concepts=("b",)))

    about = read_header(twice).metadata
    previous = Provenance.from_metadata(json.loads(about["resalign.previous"]))
    assert previous and previous.concepts == ("a",)
    assert Provenance.from_metadata(about).concepts == ("b",)
    assert about["modelspec.title"] == "base (hardened)"


def test_a_file_without_metadata_gets_them(adapter, source, tmp_path):
    """The result still loads, and says what was done."""
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(source), bare)
    export_merged(bare, adapter, tmp_path / "out.safetensors")
    assert Provenance.from_metadata(read_header(tmp_path / "out.safetensors").metadata)


def test_modules_that_the_file_lacks_are_named(adapter, source, tmp_path):
    """An adapter of another model is refused before anything is written."""
    tensors = {
        "down_blocks.9.attentions.0.proj_in.lora_A.weight": torch.zeros(1, 4),
        "down_blocks.9.attentions.0.proj_in.lora_B.weight": torch.zeros(4, 1),
    }
    with pytest.raises(ExportError, match=r"1 of the adapter's .*down_blocks\.9"):
        export_merged(
            source, Adapter(adapter.tensors | tensors, 1, 1.0), tmp_path / "out.safetensors"
        )
    wrong = random_adapter(build_networks("sdxl")["unet"], ("cross_attention_kv",))
    with pytest.raises(ExportError, match="another model"):
        export_merged(source, wrong, tmp_path / "out.safetensors")
    assert not os.listdir(tmp_path)


def test_another_width_is_refused_with_both_shapes(adapter, source, tmp_path):
    """Same names, other sizes: a fine-tune of another base."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{name}.lora_A.weight": torch.zeros(2, 48),
        f"{name}.lora_B.weight": torch.zeros(64, 2),
    }
    with pytest.raises(ExportError, match=r"\[64, 64\].*\[64, 48\]"):
        export_merged(source, Adapter(tensors, 2, 2.0), tmp_path / "out.safetensors")


def test_an_overflow_in_fp16_names_the_tensor_and_leaves_no_file(unet, tmp_path):
    """Half the file is already written by then."""
    source = write_tiny_checkpoint(tmp_path / "base.safetensors", dtype=torch.float16)
    adapter = random_adapter(unet, ("attention",))
    adapter.tensors[adapter.modules[-1] + ".lora_B.weight"][:] = 1e7
    with pytest.raises(ExportError, match=r"attn2\.to_out\.0\.weight.*float16"):
        export_merged(source, adapter, tmp_path / "out.safetensors")
    assert os.listdir(tmp_path) == ["base.safetensors"]


def test_updates_lost_in_fp8_are_counted_and_warned_of(unet, tmp_path):
    """A change of a thousandth of each weight does not reach an fp8 file: the report says so."""
    adapter = random_adapter(unet, ("attention",), size=0.03)
    reports = {}
    for dtype in (torch.float16, torch.float8_e4m3fn):
        source = write_tiny_checkpoint(tmp_path / "base.safetensors", dtype=dtype)
        target = tmp_path / "out.safetensors"
        reports[dtype] = export_merged(source, adapter, target, overwrite=True)
    assert reports[torch.float16].lost_to_rounding == 0 and not reports[torch.float16].warnings
    lost = reports[torch.float8_e4m3fn]
    assert lost.lost_to_rounding > 0.9 * lost.touched
    assert "lost more than half" in lost.warnings[0]


def test_verification_finds_a_byte_out_of_place(adapter, source, tmp_path):
    """One flipped bit: in a tensor the adapter leaves alone, and in one that it changes."""
    target = tmp_path / "out.safetensors"
    export_merged(source, adapter, target)
    header = read_header(target)
    for name, message in (
        ("first_stage_model.quant_conv.weight", "does not touch"),
        ("model.diffusion_model.middle_block.0.in_layers.2.weight", "plus the adapter"),
    ):
        data = bytearray(target.read_bytes())
        data[header.data_start + header.tensors[name].begin] ^= 1
        (tmp_path / "bad.safetensors").write_bytes(data)
        with pytest.raises(ExportError, match=message):
            verify_export(source, tmp_path / "bad.safetensors", adapter)


def test_a_model_without_a_file_cannot_be_exported(adapter, tmp_path):
    """One that a host handed over: the message says what to give instead."""
    from fakes import tiny_model

    with pytest.raises(ExportError, match="path of its checkpoint"):
        export_merged(tiny_model(), adapter, tmp_path / "out.safetensors")
