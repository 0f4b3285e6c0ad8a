"""Noise processes against closed forms: a denoiser that is exact for a known distribution.

For data with x₀ ~ N(m, s²) the best prediction of every process is linear in the noised latent, so
sampling with it must give N(m, s²) back, and the posterior mean of the target is known.
"""

import math

import pytest
import torch

from resalign.backend.families.base.process import (
    TRAIN_STEPS,
    EpsilonProcess,
    FlowProcess,
    VProcess,
    discrete_process,
    scaled_linear_alphas_cumprod,
)

ALPHAS = scaled_linear_alphas_cumprod()
PROCESSES = [EpsilonProcess(ALPHAS), VProcess(ALPHAS), FlowProcess(), FlowProcess(shift=3.0)]
KINDS = [EpsilonProcess(ALPHAS), VProcess(ALPHAS), FlowProcess(shift=3.0)]
MEAN, STD = 0.7, 0.4


def kind_of(process):
    """Name of a parametrised case."""
    return f"{type(process).__name__}-{getattr(process, 'shift', 1):g}"


def signal_and_noise(process, times):
    """(a, b) of x_t = a · x₀ + b · ε, from the definition and not from `add_noise`."""
    if process.prediction_type == "flow":
        sigma = times / TRAIN_STEPS
        return 1 - sigma, sigma
    alpha = ALPHAS.double()[times.long()]
    return alpha.sqrt(), (1 - alpha).sqrt()


def best_prediction(process, noised, times):
    """E[target | x_t] for x₀ ~ N(MEAN, STD²)."""
    a, b = signal_and_noise(process, times)
    a, b = a.to(noised), b.to(noised)
    variance = a**2 * STD**2 + b**2
    surprise = (noised - a * MEAN) / variance
    clean, noise = MEAN + a * STD**2 * surprise, b * surprise
    return {
        "epsilon": noise,
        "v_prediction": a * noise - b * clean,
        "flow": noise - clean,
    }[process.prediction_type]


@pytest.mark.parametrize("process", PROCESSES, ids=kind_of)
def test_adding_noise_is_the_stated_mixture(process):
    latents, noise = torch.randn(4, 2, 3, 3).double(), torch.randn(4, 2, 3, 3).double()
    times = torch.tensor([0, 250, 777, 999])
    a, b = (part.view(-1, 1, 1, 1) for part in signal_and_noise(process, times))
    found = process.add_noise(latents, noise, times)
    torch.testing.assert_close(found, a * latents + b * noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=kind_of)
def test_the_target_is_the_best_prediction_where_the_data_are_certain(process):
    """Samples at one point: the noise is known from x_t, and so is every target."""
    latents = torch.full((3, 1, 2, 2), MEAN, dtype=torch.float64)
    noise = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    times = torch.tensor([100, 500, 900])
    a, b = (part.view(-1, 1, 1, 1) for part in signal_and_noise(process, times))
    expected = {
        "epsilon": noise,
        "v_prediction": a * noise - b * latents,
        "flow": noise - latents,
    }[process.prediction_type]
    torch.testing.assert_close(
        process.target(latents, noise, times), expected, rtol=1e-6, atol=1e-6
    )


def test_velocity_is_the_derivative_of_the_noised_latent():
    process = FlowProcess(shift=3.0)
    latents, noise = torch.randn(1, 4).double(), torch.randn(1, 4).double()
    low, high = torch.tensor([400.0]).double(), torch.tensor([400.5]).double()
    slope = (process.add_noise(latents, noise, high) - process.add_noise(latents, noise, low)) / (
        0.5 / TRAIN_STEPS
    )
    torch.testing.assert_close(process.target(latents, noise, low), slope)


@pytest.mark.parametrize("process", PROCESSES, ids=kind_of)
def test_the_sampler_returns_the_distribution_it_was_told_of(process):
    scheduler = process.sampler(60)
    latents = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    for time in scheduler.timesteps:
        prediction = best_prediction(process, latents, time.expand(1))
        latents = scheduler.step(prediction, time, latents, return_dict=False)[0]
    assert abs(latents.mean().item() - MEAN) < 0.03
    assert abs(latents.std().item() - STD) < 0.03


def test_discrete_times_are_uniform_integers():
    times = EpsilonProcess(ALPHAS).sample_times(50_000, torch.Generator().manual_seed(1))
    assert not times.is_floating_point() and times.min() == 0 and times.max() == 999
    assert abs(times.double().mean() - 499.5) < 5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_times_are_logit_normal_before_the_shift(shift):
    process = FlowProcess(shift=shift, time_mean=0.3, time_std=0.8)
    sigma = process.sample_times(50_000, torch.Generator().manual_seed(1)).double() / TRAIN_STEPS
    unshifted = sigma / (shift - (shift - 1) * sigma)
    logits = torch.logit(unshifted)
    assert abs(logits.mean() - 0.3) < 0.02 and abs(logits.std() - 0.8) < 0.02


@pytest.mark.parametrize("process", KINDS, ids=kind_of)
def test_a_seed_gives_the_same_times(process):
    first, second = (process.sample_times(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_the_grid_of_times_is_midpoints():
    assert EpsilonProcess(ALPHAS).time_grid(4) == [125, 375, 625, 875]
    assert FlowProcess().time_grid(4) == [125.0, 375.0, 625.0, 875.0]
    shifted = FlowProcess(shift=3.0).time_grid(2)  # 3 · ¼ / (1 + 2 · ¼) = ½
    assert shifted[0] == pytest.approx(500.0) and shifted[1] == pytest.approx(900.0)


def test_alphas_of_the_scaled_linear_schedule():
    """ᾱ_0 = 1 − β_0, and log ᾱ_T is the sum of log(1 − β_t)."""
    assert ALPHAS[0] == pytest.approx(1 - 0.00085)
    roots = [0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999 for t in range(1000)]
    assert math.log(ALPHAS[-1]) == pytest.approx(sum(math.log(1 - r * r) for r in roots), rel=1e-5)


def test_a_prediction_names_its_process():
    assert type(discrete_process(ALPHAS, "epsilon")) is EpsilonProcess
    assert type(discrete_process(ALPHAS, "v_prediction")) is VProcess


@pytest.mark.parametrize("process", KINDS, ids=kind_of)
def test_fingerprints_tell_processes_apart(process):
    others = [other for other in [*KINDS, FlowProcess()] if other is not process]
    assert process.fingerprint() not in [other.fingerprint() for other in others]
