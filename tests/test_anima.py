"""Anima, recognised and loaded strictly from every layout; its relatives are refused."""

import shutil
import sys
from dataclasses import dataclass
from types import ModuleType

import fakes_anima as fakes
import family_cases
import pytest
import torch
from family_checks import assert_is_the_original, case_of, loading_fixtures
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.checkpoint.detect import detect
from resalign.backend.checkpoint.inspect import inspect
from resalign.backend.checkpoint.load import check_loadable
from resalign.backend.errors import CheckpointError
from resalign.backend.families import find_family
from resalign.backend.families.base.stored import StoredFile

ANIMA = find_family("anima")

case = case_of(family_cases.ANIMA)
models, copied, folder = loading_fixtures()


# --- loading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["net.", "", "model.diffusion_model.", "diffusion_model."])
def test_separate_files_are_found_beside_the_denoiser_and_loaded(case, tmp_path, prefix):
    """The counters that Cosmos' trainer leaves in the file belong to no network, and do no harm."""
    model = ra.load_checkpoint(fakes.write_split(tmp_path / "models", prefix=prefix))
    assert model.family is ANIMA and model.resolution == fakes.SIDE
    assert_is_the_original(case, model)


def test_the_depth_is_that_of_the_file(tmp_path):
    """The community has variants of 20 and 36 blocks."""
    path = fakes.write_split(tmp_path)
    tensors = load_file(path)
    third = {
        name.replace("net.blocks.1.", "net.blocks.2."): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith("net.blocks.1.")
    }
    save_file(tensors | third, path)
    assert len(ra.load_checkpoint(path).denoiser.transformer_blocks) == 3


@pytest.mark.parametrize("layers", [20, 28, 36])
def test_the_published_widths_are_read_off_the_header(layers):
    configs = ANIMA.recognition.describe_file(header_of(layers=layers)).configs
    expected = ANIMA.config("transformer") | {"num_layers": layers}
    assert configs["transformer"] == expected
    assert configs["text_conditioner"] == ANIMA.config("text_conditioner")


def test_a_larger_qwen_beside_it_is_not_taken(copied):
    """Qwen3 4B has the same names, and people have both."""
    text = copied / fakes.TEXT_FILE
    tensors = load_file(text)
    tensors["model.embed_tokens.weight"] = torch.zeros(fakes.VOCABULARY, 2560)
    text.unlink()
    save_file(tensors, text.with_name("qwen_3_4b.safetensors"))
    with pytest.raises(CheckpointError, match="has no text encoder"):
        detect(copied / fakes.DENOISER_FILE)


# --- copies of the denoiser --------------------------------------------------------------------


def test_the_conditioners_attention_is_not_taken_for_a_second_denoiser(models, folder):
    """Both have `blocks.0.cross_attn.k_proj`; in a folder even under the same whole name."""
    assert inspect(models / fakes.DENOISER_FILE).copies == ()
    assert inspect(folder).copies == ()


def test_moving_averages_of_cosmos_trainer_are_known(copied):
    path = copied / fakes.DENOISER_FILE
    tensors = load_file(path)
    averages = {n.replace("net.", "net_ema.", 1): t.clone() for n, t in tensors.items()}
    save_file(tensors | averages, path)
    check_loadable(path)
    (copy,) = inspect(path).copies
    assert copy.where == "net_ema.*" and copy.fate == "will be hardened"
    networks = fakes.build_networks()
    own = networks["transformer"].state_dict() | networks["text_conditioner"].state_dict()
    assert copy.tensors == len(own)


def test_a_second_denoiser_is_still_refused(copied):
    path = copied / fakes.DENOISER_FILE
    tensors = load_file(path)
    name = "blocks.0.cross_attn.k_proj.weight"
    save_file(tensors | {"old." + name: tensors["net." + name].clone()}, path)
    with pytest.raises(CheckpointError, match="holds a second transformer"):
        check_loadable(path)


# --- refusals ----------------------------------------------------------------------------------


@dataclass
class Entry:
    shape: tuple[int, ...]
    dtype: str = "BF16"
    numel: int = 1


def header_of(layers=28, channels=16, adapter=True, extra=()):
    """A denoiser's header at its published widths, without any weight."""
    shapes = {
        "x_embedder.proj.1.weight": (2048, 4 * (channels + 1)),
        "final_layer.linear.weight": (64, 2048),
        "blocks.0.self_attn.q_norm.weight": (128,),
        "blocks.0.cross_attn.k_proj.weight": (2048, 1024),
        "blocks.0.adaln_modulation_self_attn.1.weight": (256, 2048),
    }
    shapes |= {f"blocks.{i}.mlp.layer1.weight": (8192, 2048) for i in range(layers)}
    if adapter:
        own = "llm_adapter.blocks.0."
        shapes |= {f"llm_adapter.blocks.{i}.mlp.0.weight": (4096, 1024) for i in range(6)}
        shapes |= {
            "llm_adapter.embed.weight": (32128, 1024),
            own + "cross_attn.q_proj.weight": (1024, 1024),
            own + "cross_attn.k_proj.weight": (1024, 1024),
            own + "cross_attn.q_norm.weight": (64,),
            own + "self_attn.q_proj.weight": (1024, 1024),
        }
    tensors = {f"net.{name}": Entry(shape) for name, shape in shapes.items()}
    tensors |= {name: Entry((1, 1)) for name in extra}
    return StoredFile("model.safetensors", tensors, {}, lambda name: [], alone=True)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (header_of(adapter=False), "Cosmos Predict2 without a text conditioner"),
        (header_of(channels=17), "takes 17 channels"),
        (header_of(extra=["net.blocks.0.mlp.layer1.scale_weight"]), "quantised"),
        (header_of(extra=["net.blocks.0.mlp.layer1.comfy_quant"]), "quantised"),
        (header_of(extra=["net.blocks.0.mlp.layer1.weight_scale"]), "quantised"),
        (header_of(extra=["scaled_fp8"]), "quantised"),
    ],
)
def test_relatives_and_quantised_forms_are_refused_by_name(header, words):
    assert ANIMA.recognition.claims_file(header)
    with pytest.raises(CheckpointError, match=words):
        ANIMA.recognition.describe_file(header)


def test_other_transformers_are_not_taken_for_it(tmp_path):
    """Wan, too, has blocks with self_attn and cross_attn."""
    path = tmp_path / "wan.safetensors"
    save_file({"blocks.0.cross_attn.k.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match=r"transformer-based image or video model.*Anima"):
        detect(path)


@pytest.mark.parametrize(
    ("component", "part", "words"),
    [
        (fakes.TEXT_FILE, "model.embed_tokens.weight", "reads states of width 32.*gives 64"),
        (fakes.VAE_FILE, "conv2.weight", "takes 16 channels.*gives 32"),
        (fakes.VAE_FILE, "encoder.conv1.weight", "16 of 6: only the VAE of Qwen-Image fits"),
        (fakes.DENOISER_FILE, "net.llm_adapter.embed.weight", "its text conditioner gives 64"),
    ],
)
def test_parts_of_another_model_are_refused(copied, component, part, words):
    path = copied / component
    tensors = load_file(path)
    metadata = fakes.CONFIG_KEY if component == fakes.VAE_FILE else None
    axis = 0 if part == "conv2.weight" else 1
    save_file(tensors | {part: torch.cat([tensors[part]] * 2, axis)}, path, metadata)
    with pytest.raises(CheckpointError, match=words):
        detect(copied / fakes.DENOISER_FILE)


def test_an_old_diffusers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", ModuleType("diffusers"))
    with pytest.raises(CheckpointError, match=r"needs diffusers 0\.39 or newer"):
        ANIMA.networks.build("transformer", ANIMA.config("transformer"))


# --- tokenizers, which no weights file holds ----------------------------------------------------


def test_one_tokenizer_is_not_taken_for_the_other(copied):
    t5 = copied / "text_encoders/t5_tokenizer"
    shutil.rmtree(t5)
    shutil.copytree(copied / "text_encoders/tokenizer", t5)
    with pytest.raises(CheckpointError, match="not the tokenizer of T5: it has no token </s>"):
        ra.load_checkpoint(copied / fakes.DENOISER_FILE)
