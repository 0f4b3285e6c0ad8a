"""Alternatives to erasing directions, for comparison.

Each function returns the new weights by name, on the CPU, and what was erased by layer: nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ...bilevel.vectors import Loss
from ...numerics.seeds import generator
from ...run.records import ErasedLayer
from ..setup import Setup
from .fisher import WeightedLosses, fisher_ratio, reset, squared_gradients
from .layers import erasable
from .shrink import shrunk

Found = tuple[dict[str, Tensor], tuple[ErasedLayer, ...]]


def shrunk_weights(setup: Setup, step: int) -> Found:
    """Shrink all matrices and kernels, or those of the plan's targets, and add noise."""
    config = setup.plan.erase
    chosen = {name + ".weight" for name in erasable(setup)} if config.targets else setup.theta
    weights = {
        name: shrunk(
            tensor, kept_share=config.kept_share, noise=config.noise,
            random=generator(setup.plan.seed, "erase", "noise", name),
        )
        for name, tensor in setup.theta.items()
        if name in chosen and tensor.dim() > 1
    }  # fmt: skip
    return weights, ()


def reset_weights(setup: Setup, step: int) -> Found:
    """Reset the weights with the highest Fisher ratios in each layer that may be erased from."""
    θ = _fisher_weights(setup)
    concept, kept = setup.feed.concept_losses(), setup.feed.kept_losses()
    total, done = len(concept) + len(kept), 0

    def reported(make: Callable[[], Loss]) -> Loss:
        nonlocal done
        done += 1
        setup.users.on_inner_step(step, done, total, "measuring gradients")
        return make()

    def squared(losses: WeightedLosses) -> dict[str, Tensor]:
        watched = [(weight, partial(reported, make)) for weight, make in losses]
        found = squared_gradients(watched, θ, scale=setup.denoiser.loss_scale)
        return {name: tensor.cpu() for name, tensor in found.items()}

    on_concept, on_rest = squared(concept), squared(kept)
    share = setup.plan.erase.reset_share
    return {
        name: reset(tensor.cpu(), fisher_ratio(on_concept[name], on_rest[name]), share)
        for name, tensor in θ.items()
    }, ()


OTHERS: dict[str, Callable[[Setup, int], Found]] = {
    "shrink": shrunk_weights, "fisher": reset_weights,
}  # fmt: skip


def rehearse_other(setup: Setup) -> None:
    """Do what takes most memory of the device: a gradient, where there are any."""
    if setup.plan.erase.how == "fisher":
        θ = _fisher_weights(setup)
        squared_gradients(setup.feed.concept_losses()[:1], θ, scale=setup.denoiser.loss_scale)


def _fisher_weights(setup: Setup) -> dict[str, Tensor]:
    return {name + ".weight": setup.theta[name + ".weight"] for name in erasable(setup)}
