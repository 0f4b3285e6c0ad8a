"""FLUX.2 klein computes what diffusers' pipeline does: text, latents, schedule, pictures; and its
key map is complete."""

from functools import lru_cache

import fakes_klein as fakes
import pytest
import torch

import resalign as ra
from resalign.backend.families import find_family
from resalign.backend.families.base.sources import swap_halves, written_by
from resalign.backend.model.encode import decode_latents, encode_images, encode_prompts
from resalign.backend.model.generate import generate_latents

KLEIN = find_family("flux2_klein")
PROMPTS = ["a cat", "", "one big dog on a very small chair"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ra.load_checkpoint(fakes.write_split(tmp_path_factory.mktemp("klein") / "models"))


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
    from transformers import Qwen3ForCausalLM

    networks = fakes.build_networks()
    text = Qwen3ForCausalLM(networks["text_encoder"].config).eval()
    text.model.load_state_dict(networks["text_encoder"].state_dict())
    found = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=networks["vae"], text_encoder=text, tokenizer=fakes.byte_tokenizer(),
        transformer=networks["transformer"], is_distilled=False,
    )  # fmt: skip
    found.set_progress_bar_config(disable=True)
    return found


@lru_cache(maxsize=1)
def published_network():
    with torch.device("meta"):
        return KLEIN.networks.build("transformer", KLEIN.config("transformer"))


def test_prompts_are_encoded_as_the_pipeline_does(model, pipeline):
    found = encode_prompts(model, PROMPTS)["context"]
    expected = pipeline._get_qwen3_prompt_embeds(
        pipeline.text_encoder, pipeline.tokenizer, PROMPTS, hidden_states_layers=[1, 2, 3]
    )
    assert found.shape == (3, 512, 3 * fakes.TEXT_WIDTH)
    torch.testing.assert_close(found, expected)


def test_the_published_encoder_is_tapped_at_its_published_layers():
    from resalign.backend.families.flux2_klein.config import taps

    assert taps(KLEIN.config("text_encoder")["num_hidden_layers"]) == (9, 18, 27)


def test_a_long_prompt_is_cut_and_said_so(model, caplog):
    ids, mask = KLEIN.texts.tokenise(model, ["x" * 600])
    assert ids.shape == (1, 512) and mask.all() and "are ignored" in caplog.text


def test_pictures_become_normalised_patches_and_come_back(model, pipeline):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = encode_images(model, images)
    raw = pipeline._patchify_latents(pipeline.vae.encode(images).latent_dist.mode())
    norm = pipeline.vae.bn
    std = (norm.running_var + pipeline.vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    torch.testing.assert_close(found, (raw - norm.running_mean.view(1, -1, 1, 1)) / std)
    assert found.shape == (2, 128, 4, 6)
    z = pipeline._unpatchify_latents(raw)
    expected = pipeline.vae.decode(z, return_dict=False)[0].clamp(-1, 1)
    torch.testing.assert_close(decode_latents(model, found), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("positions", "steps"), [(16, 3), (1024, 20), (4096, 50), (9216, 50)])
def test_the_shift_of_sampling_is_the_pipelines(positions, steps):
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    from resalign.backend.families.flux2_klein.process import sampling_mu

    assert sampling_mu(positions, steps) == pytest.approx(compute_empirical_mu(positions, steps))


def test_training_times_are_shifted_as_at_native_size():
    """The trainers' exp 1.15 at 4096 positions."""
    process = KLEIN.process("it", KLEIN.config("scheduler"))
    assert process.shift == pytest.approx(3.158, abs=1e-3)  # type: ignore[union-attr]
    times = process.sample_times(4000, torch.Generator().manual_seed(0)) / 1000
    assert times.median() == pytest.approx(3.158 / 4.158, abs=0.01)


def test_images_are_sampled_as_the_pipeline_samples_them(model, pipeline):
    """Guidance, schedule, packing, positions and times at once, not square."""
    size = {"height": 64, "width": 96}
    found = generate_latents(model, ["a cat"], seeds=[7], steps=3, guidance=4.0, **size)
    noise = torch.randn(128, 4, 6, generator=torch.Generator().manual_seed(7))[None]
    pictures = pipeline(
        prompt="a cat", latents=noise, num_inference_steps=3, guidance_scale=4.0,
        text_encoder_out_layers=(1, 2, 3), output_type="latent", **size,
    ).images  # fmt: skip
    norm = pipeline.vae.bn
    std = (norm.running_var + norm.eps).sqrt().view(1, -1, 1, 1)
    expected = (pipeline._patchify_latents(pictures) - norm.running_mean.view(1, -1, 1, 1)) / std
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


# --- key map -----------------------------------------------------------------------------------


def test_the_map_is_closed_at_the_true_depth():
    """All tensors of the 3.9 billion parameters have a place, and no two share a row."""
    network = published_network()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert sum(tensor.numel() for tensor in network.parameters()) == pytest.approx(
        3.876e9, rel=1e-3
    )
    sources = KLEIN.tensors.denoiser_sources(network.config)
    assert sources.keys() == shapes.keys()
    pieces, missing = written_by(shapes, sources)
    assert not missing
    assert len(pieces) == len(shapes) - 4 * network.config.num_layers  # two fused of three each
    for name, own in pieces.items():
        if own[0].rows is None:
            assert len(own) == 1, name
        else:
            rows = sorted(piece.rows for piece in own if piece.rows)
            assert rows == [(0, 3072), (3072, 6144), (6144, 9216)], name


def test_the_map_is_that_of_diffusers_own_converter(model):
    from diffusers.loaders.single_file_utils import (
        convert_flux2_transformer_checkpoint_to_diffusers,
    )

    original = fakes.build_networks()["transformer"].state_dict()
    native = fakes.native_denoiser(original)
    converted = convert_flux2_transformer_checkpoint_to_diffusers(dict(native))
    sources = KLEIN.tensors.denoiser_sources(model.denoiser.config)
    named = {s.name.replace("norm.weight", "norm.scale"): s for s in sources.values()}
    assert named.keys() == native.keys()
    for name, source in sources.items():
        tensor = native[source.name.replace("_norm.weight", "_norm.scale")]
        if source.rows:
            tensor = tensor[slice(*source.rows)]
        if source.part == "swapped":
            tensor = swap_halves(tensor)
        assert torch.equal(tensor, converted[name]) and torch.equal(tensor, original[name]), name


def test_exchanging_halves_twice_changes_nothing():
    tensor = torch.arange(12.0).view(6, 2)
    assert torch.equal(swap_halves(tensor)[:3], tensor[3:])
    assert torch.equal(swap_halves(swap_halves(tensor)), tensor)
