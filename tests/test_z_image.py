"""Z-Image, recognised and loaded strictly from every layout; its relatives are refused."""

import json
import shutil
from pathlib import Path

import fakes_z_image as fakes
import pytest
import torch
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.checkpoint.detect import detect
from resalign.backend.errors import CheckpointError
from resalign.backend.families import find_family

Z_IMAGE = find_family("z_image")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A `models` folder as ComfyUI's users have it."""
    folder = tmp_path_factory.mktemp("host") / "models"
    fakes.write_split(folder)
    return folder


@pytest.fixture
def copied(models, tmp_path):
    """A copy of that folder, to damage."""
    return Path(shutil.copytree(models, tmp_path / "models"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fakes.write_folder(tmp_path_factory.mktemp("folders") / "z_image")


def assert_is_the_original(model):
    networks = fakes.build_networks()
    parts = zip(networks.values(), (model.denoiser, *model.text_encoders, model.vae), strict=True)
    for network, loaded in parts:
        expected, found = network.state_dict(), loaded.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_both_spellings_of_separate_files_are_loaded(tmp_path, fused, prefix):
    """ComfyUI's, and diffusers' in one file; both circulate."""
    path = fakes.write_split(tmp_path / "models", fused=fused, prefix=prefix)
    model = ra.load_checkpoint(path)
    assert model.family is Z_IMAGE and model.resolution == fakes.SIDE
    assert_is_the_original(model)


def test_all_in_one_is_loaded(tmp_path):
    assert_is_the_original(ra.load_checkpoint(fakes.write_whole(tmp_path / "z.safetensors")))


def test_a_diffusers_folder_is_loaded(folder):
    model = ra.load_checkpoint(folder)
    assert model.resolution == 1024
    assert_is_the_original(model)


def test_bf16_and_plain_fp8_are_loaded_in_bf16_or_wider(tmp_path):
    path = fakes.write_split(tmp_path, dtype=torch.bfloat16)
    half = ra.load_checkpoint(path, dtype=torch.float16)
    assert half.dtype == half.text_encoders[0].dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32
    tensors = load_file(path)
    name = "layers.0.attention.qkv.weight"
    eighth = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors | {name: eighth}, path)
    found = ra.load_checkpoint(path).denoiser.layers[0].attention.to_k.weight
    assert torch.equal(found, eighth.float()[fakes.WIDTH : 2 * fakes.WIDTH])


def test_companions_are_told_from_those_of_klein(copied):
    """Both read Qwen3 4B, but their VAEs differ in their channels."""
    vae = copied / fakes.VAE_FILE
    other = load_file(vae)
    other["decoder.conv_in.weight"] = torch.zeros(8, 32, 3, 3)
    save_file(other, vae.with_name("flux2-vae.safetensors"), fakes.CONFIG_KEY)
    assert detect(copied / fakes.DENOISER_FILE).files["vae"] == (vae,)
    vae.unlink()
    with pytest.raises(CheckpointError, match=r"has no VAE of FLUX.1.*ae\.safetensors.*--vae"):
        detect(copied / fakes.DENOISER_FILE)


def test_a_strangers_file_of_odd_shapes_beside_it_is_passed_over(copied):
    """It has a name of Qwen3, and embeddings without dimensions."""
    odd = {"layers.0.self_attn.q_norm.weight": torch.ones(4), "embed_tokens.weight": torch.ones(())}
    save_file(odd, copied / "text_encoders/odd.safetensors")
    assert detect(copied / fakes.DENOISER_FILE).files["text_encoder"] == (copied / fakes.TEXT_FILE,)
    with pytest.raises(CheckpointError, match=r"odd\.safetensors: its tensors do not have"):
        detect(
            copied / fakes.DENOISER_FILE,
            parts={"text_encoder": str(copied / "text_encoders/odd.safetensors")},
        )


def test_every_tensor_is_accounted_for(copied):
    path = copied / fakes.DENOISER_FILE
    tensors = load_file(path)
    del tensors["layers.1.feed_forward.w2.weight"]
    save_file(tensors | {"layers.0.extra.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"1 missing.*w2.*1 unexpected.*extra"):
        ra.load_checkpoint(path)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"siglip_embedder.0.weight": torch.zeros(3)}, "is Z-Image Omni"),
        ({"dec_net.cond_embed.weight": torch.zeros(3)}, "is Z-Image in pixel space"),
        ({"x_embedder.weight": torch.zeros(fakes.WIDTH, 132)}, "takes 33 channels"),
        ({"layers.0.attention.qkv.scale_weight": torch.zeros(1)}, "quantised"),
        ({"layers.0.attention.qkv.comfy_quant": torch.zeros(1)}, "quantised"),
        ({"cap_embedder.1.weight": torch.zeros(fakes.WIDTH, 64)}, "width 64.*gives 32"),
    ],
)
def test_relatives_and_quantised_forms_are_refused_by_name(copied, extra, words):
    path = copied / fakes.DENOISER_FILE
    save_file(load_file(path) | extra, path)
    with pytest.raises(CheckpointError, match=words):
        detect(path)


@pytest.mark.parametrize(
    ("kind", "part", "value", "words"),
    [
        ("transformer", "siglip_feat_dim", 64, "Z-Image Omni"),
        ("text_encoder", "model_type", "gemma2", "'gemma2', not Qwen3"),
        ("transformer", "quantization_config", {"bits": 4}, "is quantised"),
    ],
)
def test_folders_of_relatives_are_refused(folder, tmp_path, kind, part, value, words):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = other / kind / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {part: value}))
    with pytest.raises(CheckpointError, match=words):
        detect(other)


def test_nobody_decides_what_it_predicts(models):
    with pytest.raises(CheckpointError, match="leave `prediction` empty"):
        detect(models / fakes.DENOISER_FILE, prediction="v")


def test_turbo_is_cautioned_about(copied):
    """It has the tensors of the base: its name tells."""
    path = copied / fakes.DENOISER_FILE
    assert detect(path).distilled == ""
    named = path.with_name("z_image_turbo_bf16.safetensors")
    path.rename(named)
    info = detect(named)
    assert "Turbo" in info.distilled and "distilled checkpoint" in info.cautions[0]


def test_a_missing_tokenizer_is_asked_for(copied):
    shutil.rmtree(copied / "text_encoders/tokenizer")
    with pytest.raises(CheckpointError, match="Z-Image needs the tokenizer of Qwen3"):
        ra.load_checkpoint(copied / fakes.DENOISER_FILE)
