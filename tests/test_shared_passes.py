"""Draws of one shape share a pass of the network, and the loss stays the sum of each one's."""

import pytest
import torch

from fakes import random_conditioning, tiny_model
from resalign.backend.bilevel.losses import denoising_loss
from resalign.backend.bilevel.objective import Objective
from resalign.backend.data.batches import Draw
from resalign.backend.plan.harm import HarmConfig


class Counting:
    """Stands for a denoiser: predicts its input times the timestep; keeps the size of each pass."""

    def __init__(self):
        self.sizes = []

    def __call__(self, latents, timesteps, conditioning):
        self.sizes.append(len(latents))
        return latents * (timesteps / 1000).view(-1, 1, 1, 1)


def draw(samples, side=8, seed=0):
    random = torch.Generator().manual_seed(seed)
    latents, noise = torch.randn(2, samples, 4, side, side, generator=random).unbind()
    times = torch.randint(0, 1000, (samples,), generator=random)
    return Draw(latents, noise, times, random_conditioning(samples, seed=seed))


@pytest.fixture(scope="module")
def process():
    return tiny_model().process


@pytest.mark.parametrize(
    ("draws", "passes"),
    [
        ([draw(3, seed=1), draw(1, seed=2)], [4]),
        ([draw(3, seed=1), draw(2, 16, seed=2), draw(1, seed=3)], [4, 2]),
        ([draw(3, seed=1)], [3]),
    ],
    ids=["one shape", "two shapes", "one draw"],
)
def test_the_loss_is_the_weighted_sum_in_as_few_passes_as_shapes(process, draws, passes):
    weights = [0.7, 0.2, 0.1][: len(draws)]
    apart = Objective(Counting(), process, HarmConfig())
    expected = sum(
        weight
        * denoising_loss(apart.predict(one), process.target(one.latents, one.noise, one.timesteps))
        for weight, one in zip(weights, draws, strict=True)
    )
    network = Counting()
    found = Objective(network, process, HarmConfig()).fine_tuning(draws, weights)()
    assert network.sizes == passes
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
