"""Z-Image, recognised and loaded strictly from every layout; its relatives are refused."""

import fakes_z_image as fakes
import family_cases
import pytest
import torch
from family_checks import assert_is_the_original, case_of, loading_fixtures
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.checkpoint.detect import detect
from resalign.backend.errors import CheckpointError
from resalign.backend.families import find_family

Z_IMAGE = find_family("z_image")

case = case_of(family_cases.Z_IMAGE)
models, copied, folder = loading_fixtures()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_both_spellings_of_separate_files_are_loaded(case, tmp_path, fused, prefix):
    """ComfyUI's, and diffusers' in one file; both circulate."""
    path = fakes.write_split(tmp_path / "models", fused=fused, prefix=prefix)
    model = ra.load_checkpoint(path)
    assert model.family is Z_IMAGE and model.resolution == fakes.SIDE
    assert_is_the_original(case, model)


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
