"""Z-Image computes what diffusers' pipeline does: text, latents, schedule, pictures; and its key
map is complete."""

from functools import lru_cache

import fakes_z_image as fakes
import pytest
import torch

import resalign as ra
from resalign.backend.families import find_family
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.families.base.sources import written_by
from resalign.backend.model.encode import decode_latents, encode_images, encode_prompts
from resalign.backend.model.generate import generate_latents

Z_IMAGE = find_family("z_image")
PROMPTS = ["a cat", "", "one big dog on a very small chair, in the evening, with a hat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ra.load_checkpoint(fakes.write_split(tmp_path_factory.mktemp("z_image") / "models"))


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    networks = fakes.build_networks()
    found = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=networks["vae"],
        text_encoder=networks["text_encoder"], tokenizer=fakes.byte_tokenizer(),
        transformer=networks["transformer"],
    )  # fmt: skip
    found.set_progress_bar_config(disable=True)
    return found


@lru_cache(maxsize=1)
def published_network():
    with torch.device("meta"):
        return Z_IMAGE.networks.build("transformer", Z_IMAGE.config("transformer"))


# --- text, latents, schedule -------------------------------------------------------------------


def test_prompts_are_encoded_as_the_pipeline_does(model, pipeline):
    """Their own tokens; what follows is zero and masked."""
    found = encode_prompts(model, PROMPTS)
    expected = pipeline._encode_prompt(list(PROMPTS), torch.device("cpu"))
    assert found["context"].shape == (3, 512, fakes.TEXT_WIDTH)
    for row, own in enumerate(expected):
        assert found["mask"][row].sum() == len(own)
        torch.testing.assert_close(found["context"][row, : len(own)], own)
        assert not found["context"][row, len(own) :].any()


def test_pictures_become_latents_and_come_back(model, pipeline):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = encode_images(model, images)
    raw = pipeline.vae.encode(images).latent_dist.mode()
    torch.testing.assert_close(found, (raw - 0.1159) * 0.3611)
    expected = pipeline.vae.decode(raw, return_dict=False)[0].clamp(-1, 1)
    torch.testing.assert_close(decode_latents(model, found), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ra.DataError, match="multiples of 16"):
        model.latent_space.shape(64, 72)


def test_training_times_are_not_shifted_but_those_of_sampling_are():
    process = Z_IMAGE.process("it", Z_IMAGE.config("scheduler"))
    times = process.sample_times(4000, torch.Generator().manual_seed(0)) / 1000
    assert times.median() == pytest.approx(0.5, abs=0.02)
    assert process.sampler(4).sigmas.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_images_are_sampled_as_the_pipeline_samples_them(model, pipeline):
    """Time, sign, guidance, schedule and padding at once, not square. The pipeline's strength of
    guidance is one less than that of others."""
    size = {"height": 64, "width": 96}
    found = generate_latents(model, ["a cat"], seeds=[7], steps=3, guidance=4.0, **size)
    noise = torch.randn(16, 8, 12, generator=torch.Generator().manual_seed(7))[None]
    expected = pipeline(
        prompt="a cat", latents=noise, num_inference_steps=3, guidance_scale=3.0,
        output_type="latent", **size,
    ).images  # fmt: skip
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_a_batch_is_what_its_samples_are_alone(model):
    """Captions of unequal length: the padding of one is nothing to another."""
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 16, 6, 10, generator=random)  # 15 tokens, filled up to 32
    times, texts = torch.tensor([100.0, 500.0, 900.0]), encode_prompts(model, PROMPTS)
    with torch.no_grad():
        together = model.denoise(latents, times, texts)
        for i in range(3):
            alone = model.denoise(latents[i : i + 1], times[i : i + 1], texts[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)
        noise = torch.randn(3, 512, fakes.TEXT_WIDTH, generator=random)
        after = (1 - texts["mask"]).unsqueeze(-1)
        changed = Conditioning({**texts.parts, "context": texts["context"] + after * noise})
        assert torch.equal(together, model.denoise(latents, times, changed))


# --- key map -----------------------------------------------------------------------------------


def test_the_map_is_closed_at_the_true_depth():
    """All tensors of the 6.2 billion parameters have a place, and no two share a row."""
    network = published_network()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    count = sum(tensor.numel() for tensor in network.parameters())
    assert count == pytest.approx(6.155e9, rel=1e-3)
    sources = Z_IMAGE.tensors.denoiser_sources(network.config)
    assert sources.keys() == shapes.keys()
    pieces, missing = written_by(shapes, sources)
    assert not missing and len(pieces) == len(shapes) - 2 * 34  # qkv of 30 layers, 4 refiners
    for name, own in pieces.items():
        if name.endswith("qkv.weight"):
            rows = sorted(piece.rows for piece in own if piece.rows)
            assert rows == [(0, 3840), (3840, 7680), (7680, 11520)], name
        else:
            assert len(own) == 1 and own[0].rows is None, name


def test_the_map_is_that_of_diffusers_own_converter(model):
    from diffusers.loaders.single_file_utils import (
        convert_z_image_transformer_checkpoint_to_diffusers,
    )

    original = fakes.build_networks()["transformer"].state_dict()
    native = fakes.native_denoiser(original)
    converted = convert_z_image_transformer_checkpoint_to_diffusers(dict(native))
    sources = Z_IMAGE.tensors.denoiser_sources(model.denoiser.config)
    assert {source.name for source in sources.values()} == native.keys()
    for name, source in sources.items():
        tensor = native[source.name]
        if source.rows:
            tensor = tensor[slice(*source.rows)]
        assert torch.equal(tensor, converted[name]) and torch.equal(tensor, original[name]), name
