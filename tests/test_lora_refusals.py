"""Parts of a user's LoRA file that cannot be used are named, and the model stays as it was."""

import copy
from pathlib import Path

import pytest
from fakes_lora import (
    FLAT_CONV,
    FLAT_Q,
    Q,
    assert_same,
    bits_equal,
    kohya_file,
    plain,
    random,
    state,
    with_files,
    write,
)

from resalign.backend.errors import CheckpointError
from resalign.backend.plan.attack import LoraFile
from resalign.backend.probe.loras import with_loras


def refused(model, path: Path, message: str) -> str:
    """The message of the error, which names the file; the model is as before."""
    before = state(model)
    with (
        pytest.raises(CheckpointError, match=message) as error,
        with_loras(model, [LoraFile(path=str(path))]),
    ):
        pass
    assert path.name in str(error.value)
    assert bits_equal(before, state(model))
    return str(error.value)


def test_damaged_files_are_named(tiny_models, tmp_path):
    """Truncated, empty, a pickle, a web page, absent: the file and what to do."""
    model, path = tiny_models("sd1"), write(tmp_path / "whole.safetensors", plain())
    whole = path.read_bytes()
    for content, message in (
        (whole[:-100], "truncated"), (whole[:40], "truncated"), (b"", "truncated"),
        (b"PK\x03\x04" + bytes(100), "pickle"), (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P", "pickle"),
        (b"<!DOCTYPE html><html>", "web page"),
    ):  # fmt: skip
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(content)
        refused(model, bad, message)
    refused(model, tmp_path / "none.safetensors", "does not exist")
    refused(model, write(tmp_path / "empty.safetensors", {}), "no tensors")


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tiny_models, tmp_path, length):
    """0x80 0x02 to 0x80 0x05 are also the first bytes of headers of these lengths."""
    for room in range(length):
        path = write(tmp_path / "a.safetensors", plain(), note="x" * room)
        if path.read_bytes()[:2] == length.to_bytes(2, "little"):
            break
    assert path.read_bytes()[:8] == length.to_bytes(8, "little")
    assert not bits_equal(with_files(tiny_models("sd1"), path), state(tiny_models("sd1")))


def test_a_checkpoint_given_as_a_lora_is_called_one(tiny_models, tmp_path):
    """The error says which other kind of file it is, if that is known."""
    model = tiny_models("sd1")
    refused(model, model.source, "whole checkpoint.*merge")
    embedding = write(tmp_path / "embedding.safetensors", {"emb_params": random(2, 32)})
    refused(model, embedding, "textual")
    refused(model, write(tmp_path / "what.safetensors", {"x": random(2)}), "'x'")


@pytest.mark.slow
def test_a_lora_for_another_family_says_both(tiny_models, tmp_path):
    """SD 1.x on SDXL and back, Flux on either: what it looks like, what the model is, how many."""
    sd1 = kohya_file(tiny_models("sd1"), tmp_path / "sd1.safetensors")
    sdxl = kohya_file(tiny_models("sdxl"), tmp_path / "sdxl.safetensors")
    refused(tiny_models("sdxl"), sd1, r"1\.x or Stable Diffusion 2\.x, but the model is SDXL")
    refused(tiny_models("sd1"), sdxl, "for SDXL base, but the model is Stable Diffusion 1.x")
    flux = {f"lora_unet_double_blocks_0_img_attn_qkv.lora_{side}.weight": random(4, 4)
            for side in ("down", "up")}  # fmt: skip
    message = refused(tiny_models("sd1"), write(tmp_path / "flux.safetensors", flux), "Flux")
    assert "2 of its 2 tensors" in message and "double_blocks_0" in message


def test_the_same_names_at_another_width_are_another_base(tiny_models, tmp_path):
    """SD 2.x has SD 1.x's names: the text's width tells it, or else the widths are named."""
    stem = FLAT_Q.replace("attn1_to_q", "attn2_to_k")
    wide = {f"{stem}.lora_down.weight": random(4, 1024), f"{stem}.lora_up.weight": random(32, 4)}
    path = write(tmp_path / "sd2.safetensors", wide)
    assert "2.x, but the model is" in refused(tiny_models("sd1"), path, "from 1024 to 32 channels")
    odd = {f"{FLAT_Q}.lora_down.weight": random(4, 33), f"{FLAT_Q}.lora_up.weight": random(32, 4)}
    refused(tiny_models("sd1"), write(tmp_path / "odd.safetensors", odd), "another base")


Q_DOWN, Q_UP = f"{FLAT_Q}.lora_down.weight", f"{FLAT_Q}.lora_up.weight"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"lora_unet_down_blocks_9.alpha": (1,)}, r"1 of its 3.*down_blocks_9.*no such modules"),
        ({f"{FLAT_CONV}.oft_blocks": (4, 8, 8)}, "of OFT"),
        ({f"{FLAT_Q}.something": (4,)}, "no kind of LoRA"),
        ({"bundle_emb.word.string_to_param.*": (4,)}, "textual inversion"),
        ({f"{FLAT_CONV}.alpha": (1,)}, "lacks the other parts"),
        ({f"{FLAT_CONV}.lora_down.weight": (4, 32, 3, 3)}, "lacks the other parts"),
        ({f"{FLAT_Q}.hada_w1_a": (4, 8)}, "or has those of two"),
        ({f"unet.{Q}.lora_A.weight": (4, 32), f"unet.{Q}.lora_B.weight": (32, 4)}, "twice"),
        ({f"{FLAT_Q}.diff_b": (32,)}, "has no bias"),
        ({f"{FLAT_Q}.dora_scale": (31, 1)}, "magnitudes"),
        ({f"{FLAT_Q}.alpha": (2,)}, "not a single number"),
        ({Q_UP: (32, 3)}, "ranks 3 and 4"),
        ({Q_UP: ()}, "does not fit"),
        ({f"{FLAT_Q}.lora_mid.weight": ()}, "does not fit"),
        ({Q_DOWN: (4, 32, 3, 3)}, "does not fit"),
        ({f"{FLAT_CONV}.diff": (32, 32)}, r"\[32, 32\].*\[32, 32, 3, 3\]"),
        ({f"{FLAT_CONV}.lokr_w1": (4, 4), f"{FLAT_CONV}.lokr_w2": (8, 9)}, "does not fit"),
    ],
)
def test_what_of_a_file_cannot_be_used_is_named(tiny_models, tmp_path, extra, message):
    """One tensor without a place is an error: nothing is dropped without a word."""
    tensors = plain() | {name: random(*shape) for name, shape in extra.items()}
    refused(tiny_models("sd1"), write(tmp_path / "odd.safetensors", tensors), message)


def test_nan_and_overflow_are_errors(tiny_models, tmp_path):
    """NaN in the file names the tensor; a sum that the model's type cannot hold its layer."""
    model, bad = tiny_models("sd1"), plain()
    bad[Q_UP][3, 2] = float("nan")
    refused(model, write(tmp_path / "nan.safetensors", bad), "lora_up.*NaN")
    half = copy.copy(model)
    half.denoiser = copy.deepcopy(model.denoiser).half()
    large = write(tmp_path / "large.safetensors", plain(size=1e3))
    refused(half, large, "float16.*lower the strength")


def test_peft_files_of_one_text_encoder_do_not_say_which(tiny_models, tmp_path):
    """SDXL has two: refused with a way out rather than put on one of them."""
    stem = "base_model.model.text_model.encoder.layers.0.mlp.fc1"
    tensors = {f"{stem}.lora_A.weight": random(2, 32), f"{stem}.lora_B.weight": random(64, 2)}
    refused(tiny_models("sdxl"), write(tmp_path / "a.safetensors", tensors), "which of two")


def test_peft_without_its_config_says_that_alpha_is_guessed(tiny_models, tmp_path, caplog):
    """The rank, as everybody takes it then, and a warning that names the missing file."""
    stem, a, b = f"base_model.model.{Q}", random(4, 32), random(32, 4)
    path = write(
        tmp_path / "a.safetensors", {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    )

    before, name = state(tiny_models("sd1")), f"unet.{Q}.weight"
    assert_same(with_files(tiny_models("sd1"), path), before | {name: before[name] + b @ a}, before)
    assert "adapter_config.json" in caplog.text
