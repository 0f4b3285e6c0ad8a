"""FLUX.2 klein 4B, recognised and loaded strictly from every layout; its relatives are refused."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import fakes_klein as fakes
import family_cases
import pytest
import torch
from family_checks import assert_is_the_original, case_of, loading_fixtures
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.checkpoint.detect import detect
from resalign.backend.errors import CheckpointError, ConfigError
from resalign.backend.families import find_family
from resalign.backend.families.base.stored import StoredFile

NAME = "flux2_klein"
KLEIN = find_family(NAME)

case = case_of(family_cases.KLEIN)
models, copied, folder = loading_fixtures()


# --- loading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_a_denoiser_with_a_prefix_is_loaded(case, copied, prefix):
    path = copied / fakes.DENOISER_FILE
    save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
    assert_is_the_original(case, ra.load_checkpoint(path))


def test_a_companion_is_named_where_it_lies_elsewhere(case, copied, tmp_path):
    for name in ("other_text.safetensors", "other_vae.safetensors"):
        (tmp_path / "far").mkdir(exist_ok=True)
        source = fakes.TEXT_FILE if "text" in name else fakes.VAE_FILE
        shutil.move(copied / source, tmp_path / "far" / name)
    shutil.copytree(copied / "text_encoders/tokenizer", tmp_path / "far/tokenizer")
    parts = {
        "text_encoder": str(tmp_path / "far/other_text.safetensors"),
        "vae": str(tmp_path / "far/other_vae.safetensors"),
    }
    info = detect(copied / fakes.DENOISER_FILE, parts=parts)
    assert_is_the_original(case, ra.load_checkpoint(info))
    wrong = {**parts, "vae": parts["text_encoder"]}
    with pytest.raises(CheckpointError, match=r"does not hold the VAE of FLUX.2"):
        detect(copied / fakes.DENOISER_FILE, parts=wrong)


def test_two_fitting_companions_are_not_guessed_between(copied):
    text = copied / fakes.TEXT_FILE
    for name in ("one", "two"):
        shutil.copyfile(text, text.with_name(f"{name}.safetensors"))
    assert detect(copied / fakes.DENOISER_FILE).files["text_encoder"] == (text,)  # its usual name
    text.unlink()
    with pytest.raises(CheckpointError, match=r"several files hold one \(one.*two"):
        detect(copied / fakes.DENOISER_FILE)


def test_parts_are_refused_where_the_checkpoint_holds_them(folder, models):
    named = {"vae": str(models / fakes.VAE_FILE)}
    with pytest.raises(ConfigError, match="vae: leave it empty"):
        detect(folder, parts=named)


# --- refusals ----------------------------------------------------------------------------------


@dataclass
class Entry:
    shape: tuple[int, ...]
    dtype: str = "BF16"
    numel: int = 1


def header_of(width=3072, head=128, extra=(), channels=128, doubles=5, singles=20):
    """A denoiser's header at its published widths, without any weight."""
    shapes = {
        "img_in.weight": (width, channels), "txt_in.weight": (width, 7680),
        "time_in.in_layer.weight": (width, 256), "double_stream_modulation_img.lin.weight": (1, 1),
        "double_blocks.0.img_attn.norm.query_norm.scale": (head,),
        "double_blocks.0.img_mlp.2.weight": (width, 3 * width),
    }  # fmt: skip
    shapes |= {f"double_blocks.{i}.img_attn.qkv.weight": (1, 1) for i in range(doubles)}
    shapes |= {f"single_blocks.{i}.linear1.weight": (1, 1) for i in range(singles)}
    tensors = {name: Entry(shape) for name, shape in shapes.items()}
    tensors |= {name: Entry((1, 1)) for name in extra}
    return StoredFile("model.safetensors", tensors, {}, lambda name: [])


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (header_of(4096, doubles=8, singles=24), "FLUX.2 klein 9B"),
        (header_of(6144, extra=["guidance_in.in_layer.weight"]), "FLUX.2 dev"),
        (header_of(channels=260), "takes 260 channels"),
        (header_of(extra=["double_blocks.0.img_attn.qkv.scale_weight"]), "quantised"),
        (header_of(extra=["double_blocks.0.img_attn.qkv.comfy_quant"]), "quantised"),
        (header_of(extra=["scaled_fp8"]), "quantised"),
    ],
)
def test_relatives_and_quantised_forms_are_refused_by_name(header, words):
    assert KLEIN.recognition.claims_file(header)
    with pytest.raises(CheckpointError, match=words):
        KLEIN.recognition.describe_file(header)


def test_other_transformers_are_not_taken_for_it(tmp_path):
    path = tmp_path / "flux1.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match="is a Flux model"):
        detect(path)


def test_a_text_encoder_of_another_size_is_refused(copied):
    path = copied / fakes.TEXT_FILE
    wide = {n: torch.cat([t, t], -1) if t.dim() == 2 else t for n, t in load_file(path).items()}
    save_file(wide, path)
    with pytest.raises(CheckpointError, match=r"width 96.*give 192"):
        detect(copied / fakes.DENOISER_FILE)


def test_a_quantised_text_encoder_is_named(copied):
    path = copied / fakes.TEXT_FILE
    save_file(load_file(path) | {"model.layers.0.mlp.up_proj.comfy_quant": torch.zeros(4)}, path)
    with pytest.raises(CheckpointError, match=r"qwen_3_4b.safetensors is quantised.*bf16"):
        detect(copied / fakes.DENOISER_FILE)


# --- the distilled model, which has the same tensors ------------------------------------------


def test_a_folder_says_itself_whether_it_is_distilled(folder, tmp_path):
    assert detect(folder).distilled == ""
    other = Path(shutil.copytree(folder, tmp_path / "klein-base"))
    index = other / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": True}))
    assert "is_distilled" in detect(other).distilled


# --- the tokenizer, which no weights file holds -----------------------------------------------


def test_another_models_tokenizer_is_refused(copied):
    file = copied / "text_encoders/tokenizer/tokenizer.json"
    text = file.read_text().replace("<think>", "<thought>")
    file.write_text(text)
    settings = file.with_name("tokenizer_config.json")
    settings.write_text(settings.read_text().replace("<think>", "<thought>"))
    with pytest.raises(
        CheckpointError, match="not the tokenizer of Qwen3: it has no token <think>"
    ):
        ra.load_checkpoint(copied / fakes.DENOISER_FILE)
