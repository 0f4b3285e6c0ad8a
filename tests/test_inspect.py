"""`inspect` says what a file is, for a reader and for a program, from its header alone."""

import hashlib
import json
import time

import pytest
import torch
from fakes_checkpoint import (
    build_networks,
    ldm_tensors,
    write_sparse,
    write_tiny_checkpoint,
    write_tiny_folder,
)
from safetensors.torch import save_file

from resalign.backend.checkpoint.inspect import inspect
from resalign.backend.errors import CheckpointError
from resalign.backend.plan.methods import TEST_RUN
from resalign.scripts.resalign_webui.about import header_html


@pytest.fixture(scope="module")
def tiny():
    """Tensors of an SD 1.x file, without storage."""
    return {n: t.to("meta") for n, t in ldm_tensors(build_networks()).items()}


def test_a_checkpoint_is_described_to_a_reader(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "model.safetensors", prediction_type="v_prediction")

    found = inspect(path)

    assert str(found) == found.to_text()
    assert found.to_text().splitlines() == [
        f"file            {path}",
        "model           Stable Diffusion 1.x, predicts v, 64 px",
        "layout          one file",
        f"size            {path.stat().st_size:,} bytes in {found.tensor_count:,} tensors",
        "stored as       unet: F16",
        "                text_encoder: F16",
        "                vae: F16",
        "hardened        no record of it in the file",
    ]


def test_a_checkpoint_is_described_to_a_program(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "model.safetensors", "sdxl", metadata={"a": "b"})

    record = json.loads(json.dumps(inspect(path).to_json()))

    assert record["supported"] is True
    assert record["kind"] == "checkpoint"
    assert record["family"] == "sdxl"
    assert record["dtypes"]["text_encoder_2"] == ["F16"]
    assert record["bytes"] == path.stat().st_size
    assert record["sha256"] == ""
    assert record["metadata"]["a"] == "b"


def test_a_folder_is_described(tmp_path):
    found = inspect(write_tiny_folder(tmp_path / "folder", "sd2"), hash=True)

    assert (found.kind, found.family, found.layout) == ("checkpoint", "sd2", "diffusers")
    assert len(found.sha256) == 64
    assert found.to_text().startswith("folder ")


def test_the_hash_is_that_of_the_whole_file_and_only_on_request(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "model.safetensors")

    assert inspect(path).sha256 == ""
    found = inspect(path, hash=True)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.sha256 in str(found)


def test_the_hash_of_a_folder_follows_its_weights(tmp_path):
    path = write_tiny_folder(tmp_path / "folder")
    lines = "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(path).as_posix()}\n"
        for file in sorted(path.rglob("*.safetensors"))
    )

    assert inspect(path, hash=True).sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_what_was_done_to_a_hardened_file_is_told(tmp_path, tiny):
    said = {
        "resalign.method": "ResAlign",
        "resalign.concepts": '["nudity", "hate_symbols"]',
        "resalign.source_sha256": "12ab",
        "resalign.probe": "not measured",
        "resalign.config": "{}",
    }
    found = inspect(write_sparse(tmp_path / "m.safetensors", tiny, metadata=said))

    assert found.hardened == {
        "method": "ResAlign",
        "concepts": ["nudity", "hate_symbols"],
        "source_sha256": "12ab",
        "probe": "not measured",
    }
    assert "hardened        method: ResAlign" in str(found)
    assert "concepts: nudity, hate symbols" in str(found)


TEST = json.dumps({"steps": 20, "simulate": "shared"})
LONG = json.dumps({"steps": 160, "simulate": "shared"})
BACK = "Not safe to publish: after fine-tuning it draws “weapons” again (3 of 4 pictures)."


@pytest.mark.parametrize(
    ("training", "probe", "safety"),
    [
        (TEST, "not measured", (f"It comes from {TEST_RUN}.", "Nobody has measured whether")),
        (LONG, "not measured", ("Nobody has measured whether",)),
        (LONG, json.dumps({"verdict": BACK, "headline": "75 %"}), (BACK,)),
        (TEST, json.dumps({"headline": "75 %"}), (f"It comes from {TEST_RUN}.", "A probe ")),
        (LONG, "[1]", ("Nobody has measured",)),
    ],
)  # fmt: skip
def test_a_file_repeats_what_is_known_of_its_safety(tmp_path, tiny, training, probe, safety):
    """That it is of a test run, that a probe found it unsafe, or that nobody measured it."""
    said = {"resalign.method": "ResAlign", "resalign.training": training, "resalign.probe": probe}
    path = write_sparse(tmp_path / "m.safetensors", tiny, metadata=said)
    found = inspect(path)
    assert len(found.safety) == len(safety)
    assert all(map(str.startswith, found.safety, safety))
    first = next(line for line in str(found).splitlines() if line.startswith("safety"))
    assert first[16:].startswith(safety[0])
    shown = header_html(path)
    assert shown.startswith('<div class="ra ra-note ra-doubtful">' + found.safety[0])


def test_a_file_that_was_not_hardened_says_nothing_of_safety(tmp_path, tiny):
    path = write_sparse(tmp_path / "m.safetensors", tiny)
    assert inspect(path).safety == () and "ra-note" not in header_html(path)


def test_moving_averages_are_mentioned(tmp_path, tiny):
    extra = {"model_ema.decay": torch.empty(0, device="meta")}

    found = inspect(write_sparse(tmp_path / "m.safetensors", tiny | extra))

    assert found.keeps_moving_average
    assert "with moving averages" in str(found)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_unet_mid_block.lora_up.weight", "lora_unet_mid_block.lora_down.weight"], "lora"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "vae"),
        (["text_model.final_layer_norm.weight"], "text_encoder"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "flux"),
        (["something"], "unknown"),
    ],
)
def test_what_is_no_checkpoint_is_described_not_refused(tmp_path, names, kind):
    tensors = {name: torch.empty(4, 4, device="meta") for name in names}

    found = inspect(write_sparse(tmp_path / "other.safetensors", tensors))

    assert (found.kind, found.supported, found.family) == (kind, False, "")
    assert found.problem.startswith("other.safetensors is ")
    assert found.problem in str(found)
    assert found.dtypes == {"all": ("F16",)}


def test_a_checkpoint_that_cannot_be_hardened_is_described_with_the_reason(tmp_path, tiny):
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.empty(32, 9, 3, 3)}

    found = inspect(write_sparse(tmp_path / "m.safetensors", tiny | first))

    assert found.kind == "unsupported"
    assert "inpainting" in found.problem


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"PK\x03\x04" + bytes(100))

    with pytest.raises(CheckpointError, match="is a pickle"):
        inspect(path)


def test_inspection_takes_milliseconds_whatever_the_size(tmp_path, tiny):
    """8 GB of moving averages beside the weights, on a busy machine: well under a second."""
    heavy = {f"model_ema.{i}": torch.empty(4, 1024, 1024, device="meta") for i in range(1000)}
    path = write_sparse(tmp_path / "m.safetensors", tiny | heavy)
    assert path.stat().st_size > 8e9

    start = time.perf_counter()
    inspect(path)

    assert time.perf_counter() - start < 1


def test_the_line_of_a_probe_is_whole(tmp_path):
    headline = "hardened: " + "at worst much of it. " * 30 + "\nafter: less"
    path = tmp_path / "safe.safetensors"
    probe = json.dumps({"headline": headline, "verdict": "Removed."})
    save_file({"w": torch.zeros(1)}, path, metadata={"resalign.probe": probe})
    said = headline.replace("\n", " ")
    assert f"probe: {said}" in inspect(path).to_text()
    assert f"probe: {said}" in header_html(path)
