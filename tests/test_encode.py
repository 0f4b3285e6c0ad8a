"""Text and images to what the denoiser reads, and back."""

from __future__ import annotations

import logging

import pytest
import torch
from fakes_data import tiny_family

from resalign.backend.model.encode import (
    decode_latents,
    encode_images,
    encode_prompts,
    encoders_on_device,
    offload_encoders,
)

TOKENS = 77
FAMILIES = ("sd1", "sd2", "sdxl")
PROMPTS = ["a red fox", "two kites over a beach", ""]


def pipeline(model):
    """Diffusers' own pipeline of the same parts, as the reference."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    if model.family.name == "sdxl":
        return StableDiffusionXLPipeline(
            model.vae, *model.text_encoders, *model.tokenizers, model.denoiser, scheduler,
            force_zeros_for_empty_prompt=False, add_watermarker=False,
        )  # fmt: skip
    return StableDiffusionPipeline(
        model.vae, model.text_encoders[0], model.tokenizers[0], model.denoiser, scheduler,
        None, None, requires_safety_checker=False,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_encoded_as_the_diffusers_pipeline_of_the_family_does(family):
    model = tiny_family(family)
    reference = pipeline(model).encode_prompt(
        PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )

    found = encode_prompts(model, PROMPTS)

    torch.testing.assert_close(found["context"], reference[0].detach())
    if family == "sdxl":
        torch.testing.assert_close(found["pooled"], reference[2].detach())
    else:
        assert set(found.parts) == {"context"}


@pytest.mark.parametrize("family", FAMILIES)
def test_conditioning_has_the_shape_that_the_denoiser_reads(family):
    model = tiny_family(family)

    found = encode_prompts(model, PROMPTS)
    latents = torch.zeros(3, 4, 8, 8)

    assert found["context"].shape == (3, TOKENS, 40 if family == "sdxl" else 16)
    assert not found["context"].requires_grad
    assert model.denoise(latents, torch.tensor([1, 2, 3]), found).shape == latents.shape


def test_an_embedding_does_not_depend_on_the_batch_it_was_made_in():
    model = tiny_family("sdxl")

    together, apart = encode_prompts(model, PROMPTS), encode_prompts(model, PROMPTS, batch=1)

    torch.testing.assert_close(together["context"], apart["context"])
    torch.testing.assert_close(together["pooled"], apart["pooled"])


def test_sdxl_is_told_the_size_as_original_and_target_without_a_crop():
    model = tiny_family("sdxl")

    assert (
        encode_prompts(model, ["a", "b"], size=(96, 40))["time_ids"].tolist()
        == [[96, 40, 0, 0, 96, 40]] * 2
    )
    assert encode_prompts(model, ["a"])["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]]


def test_sizes_in_pixels_survive_a_cast_to_half_precision():
    found = encode_prompts(tiny_family("sdxl"), ["a"], size=(1333, 2051))

    cast = found.to("cpu", torch.bfloat16)

    assert cast["context"].dtype == cast["pooled"].dtype == torch.bfloat16
    assert cast["time_ids"].tolist() == [[1333, 2051, 0, 0, 1333, 2051]]


def test_a_prompt_that_is_too_long_is_cut_and_named_in_a_warning(caplog):
    model = tiny_family()
    long = "k" * 80

    with caplog.at_level(logging.WARNING):
        found = encode_prompts(model, ["short", long])

    assert found["context"].shape == (2, TOKENS, 16)
    cut = encode_prompts(model, ["k" * 78])
    torch.testing.assert_close(found["context"][1], cut["context"][0])
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("resalign")]
    assert "80 tokens, the last 5 are ignored" in messages[0] and long in messages[0]


def test_no_prompts_is_a_bug_of_the_caller():
    with pytest.raises(ValueError, match="no prompts"):
        encode_prompts(tiny_family(), [])


def test_latents_are_the_mean_of_the_posterior_times_the_scaling_factor():
    model = tiny_family()
    images = torch.rand(2, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        expected = model.vae.encode(images).latent_dist.mean * 0.5

    found = encode_images(model, images)

    assert found.shape == (2, 4, 8, 6) and not found.requires_grad
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, encode_images(model, images))


def test_sampling_the_posterior_follows_the_generator():
    model, images = tiny_family(), torch.zeros(1, 3, 32, 32)

    def sample(seed):
        return encode_images(
            model, images, sample=True, generator=torch.Generator().manual_seed(seed)
        )

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_decoding_gives_the_vae_s_images_whatever_the_batch():
    model = tiny_family()
    latents = torch.randn(5, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.vae.decode(latents / 0.5).sample.clamp(-1, 1)

    found = decode_latents(model, latents, batch=2)

    assert found.shape == (5, 3, 32, 48)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_vae_works_in_float32_and_is_left_as_it_was(dtype):
    model = tiny_family()
    model.vae.to(dtype)
    weights = {name: value.clone() for name, value in model.vae.state_dict().items()}

    latents = encode_images(model, torch.rand(1, 3, 32, 32))

    assert latents.dtype == decode_latents(model, latents).dtype == torch.float32
    for name, value in model.vae.state_dict().items():
        assert value.dtype == dtype and torch.equal(value, weights[name])


def test_encoders_come_to_the_device_for_a_block_and_go_back_even_after_an_error(monkeypatch):
    model = tiny_family("sdxl")
    moves = []
    for index, module in enumerate((*model.text_encoders, model.vae)):
        monkeypatch.setattr(module, "to", lambda where, i=index: moves.append((i, str(where))))

    def fail():
        with encoders_on_device(model):
            assert moves == [(0, "cpu"), (1, "cpu"), (2, "cpu")]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert len(moves) == 6
    offload_encoders(model)
    assert moves[6:] == [(0, "cpu"), (1, "cpu"), (2, "cpu")]
