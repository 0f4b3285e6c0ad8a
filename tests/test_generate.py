"""Sampling without a pipeline."""

from __future__ import annotations

import pytest
import torch
from fakes_data import tiny_family
from test_encode import pipeline

from resalign.backend.errors import DataError
from resalign.backend.model.encode import decode_latents, encode_prompts
from resalign.backend.model.generate import generate_images, generate_latents
from resalign.backend.model.process import discrete_process

PROMPTS = ["a red fox", "two kites", "a pear"]
CASES = [("sd1", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon")]


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(("family", "prediction"), CASES)
def test_latents_are_those_of_the_diffusers_pipeline(family, prediction):
    model = tiny_family(family, prediction)
    reference = pipeline(model)
    reference.scheduler = model.process.sampler(4)
    reference.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    expected = reference(
        "a red fox", num_inference_steps=4, guidance_scale=5.0, latents=noise,
        height=64, width=64, output_type="latent",
    ).images  # fmt: skip

    found = generate_latents(model, ["a red fox"], seeds=[11], steps=4, guidance=5.0)

    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "prediction"), CASES)
def test_an_image_does_not_depend_on_the_batch_it_is_made_in(family, prediction):
    model = tiny_family(family, prediction)

    together = generate_latents(model, PROMPTS, seeds=[5, 6, 7], steps=3, batch=8)
    apart = generate_latents(model, PROMPTS, seeds=[5, 6, 7], steps=3, batch=2)
    alone = generate_latents(model, PROMPTS[1:2], seeds=[6], steps=3)

    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_image():
    model = tiny_family()

    first, again, other = (
        generate_latents(model, ["a"], seeds=[seed], steps=3) for seed in (1, 1, 2)
    )

    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_one_prompt_serves_all_seeds_as_text_or_encoded():
    model = tiny_family()

    as_text = generate_latents(model, ["a fox"], seeds=[1, 2], steps=2)
    encoded = generate_latents(model, encode_prompts(model, ["a fox"]), seeds=[1, 2], steps=2)

    assert as_text.shape == (2, 4, 8, 8) and as_text.dtype == torch.float32
    torch.testing.assert_close(as_text, encoded)


def test_prompts_and_seeds_must_match():
    with pytest.raises(DataError, match="2 prompts for 3 seeds"):
        generate_latents(tiny_family(), ["a", "b"], seeds=[1, 2, 3])


def test_a_side_that_is_no_multiple_of_8_is_refused():
    with pytest.raises(DataError, match="60 x 64 pixels"):
        generate_latents(tiny_family(), ["a"], seeds=[1], width=60)


def test_without_guidance_the_denoiser_sees_each_image_once(monkeypatch):
    model, seen = tiny_family(), []
    forward = model.denoiser.forward
    monkeypatch.setattr(
        model.denoiser,
        "forward",
        lambda x, *args, **kw: seen.append(len(x)) or forward(x, *args, **kw),
    )

    generate_latents(model, ["a"], seeds=[1, 2], steps=2, guidance=1.0)
    generate_latents(model, ["a"], seeds=[1, 2], steps=2, guidance=3.0)

    assert seen == [2, 2, 4, 4]


def test_a_negative_prompt_takes_the_place_of_the_empty_one():
    model = tiny_family()

    def latents(negative):
        return generate_latents(model, ["a fox"], seeds=[1], steps=2, negative=negative)

    torch.testing.assert_close(latents(None), latents(""))
    assert not torch.equal(latents("blurred"), latents(""))
    torch.testing.assert_close(latents("blurred"), latents(encode_prompts(model, ["blurred"])))


def test_other_sizes_are_told_to_sdxl():
    model = tiny_family("sdxl")
    size = (48, 96)

    by_text = generate_latents(model, ["a"], seeds=[1], steps=2, height=48, width=96)
    told = generate_latents(
        model, encode_prompts(model, ["a"], size=size), seeds=[1], steps=2, height=48, width=96,
    )  # fmt: skip

    assert by_text.shape == (1, 4, 6, 12)
    torch.testing.assert_close(by_text, told)


def test_images_are_the_decoded_latents():
    model = tiny_family()

    images = generate_images(model, ["a"], seeds=[3, 4], steps=2)
    latents = generate_latents(model, ["a"], seeds=[3, 4], steps=2)

    assert images.shape == (2, 3, 64, 64) and images.min() >= -1 and images.max() <= 1
    torch.testing.assert_close(images, decode_latents(model, latents))


def test_the_denoiser_is_evaluated_without_gradients_and_left_in_its_mode():
    model = tiny_family()
    model.denoiser.train()
    model.denoiser.requires_grad_(True)

    latents = generate_latents(model, ["a"], seeds=[1], steps=2)

    assert not latents.requires_grad
    assert model.denoiser.training
    torch.testing.assert_close(latents, generate_latents(tiny_family(), ["a"], seeds=[1], steps=2))


def test_half_precision_weights_are_solved_in_float32():
    model = tiny_family()
    exact = generate_latents(model, ["a"], seeds=[1], steps=3, guidance=1)
    torch.nn.Module.to(model.denoiser, torch.bfloat16)

    found = generate_latents(model, ["a"], seeds=[1], steps=3, guidance=1)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.5, rtol=0.1)


def test_progress_tells_images_and_steps_and_may_stop_the_run():
    moments = []
    generate_latents(
        tiny_family(), ["a"], seeds=[1, 2, 3], steps=2, batch=2, on_progress=moments.append
    )

    assert [(m.step, m.micro_step) for m in moments] == [(0, 1), (0, 2), (2, 1), (2, 2), (3, 0)]
    assert {(m.stage, m.total) for m in moments} == {("sampling", 3)}

    def stop(progress):
        raise KeyboardInterrupt

    model = tiny_family()
    model.denoiser.train()
    with pytest.raises(KeyboardInterrupt):
        generate_latents(model, ["a"], seeds=[1], on_progress=stop)
    assert model.denoiser.training


def test_the_solver_runs_over_the_model_s_own_schedule_even_one_that_ends_in_pure_noise():
    alphas = torch.linspace(0.999, 0.0, 1000)
    scheduler = discrete_process(alphas, "v_prediction").sampler(5)

    torch.testing.assert_close(scheduler.alphas_cumprod[:-1], alphas[:-1], atol=1e-4, rtol=1e-3)
    assert torch.isfinite(scheduler.sigmas).all()
    assert scheduler.config["prediction_type"] == "v_prediction"
