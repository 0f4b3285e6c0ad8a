"""One simulated fine-tuning run: from φ0 to φ*, with an optimiser of its own each time.

Plain fine-tuning minimises L_ft(φ); with `gamma` the proximal problem
L_ft(φ) + ‖φ − φ0‖² / 2γ is followed instead (Li et al., arXiv:2507.16302), whose stationary
point is what the implicit gradient assumes. Moments never carry over between runs: the users
simulated are different people.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import FineTuneConfig, LearningRateSchedule
from .vectors import Loss, Parameters, distance, gradient, snapshot


@dataclass(frozen=True, slots=True)
class InnerRun:
    """What a run did: steps, first and last loss, L2 length of its weight move (scalars)."""

    steps: int
    first_loss: Tensor
    last_loss: Tensor
    move: Tensor


def learning_rate_at(schedule: LearningRateSchedule, step: int, steps: int) -> float:
    """Share of the full learning rate at `step` (1 to `steps`)."""
    done = (step - 1) / steps
    if schedule == "linear":
        return 1 - done
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0


def inner_loop(
    parameters: Parameters,
    loss: Callable[[int], Loss],
    config: FineTuneConfig,
    steps: int,
    *,
    gamma: float | None = None,
    scale: float = 1.0,
    on_step: Callable[[int], None] | None = None,
) -> InnerRun:
    """Train `parameters` in place on the loss that `loss(step)` gives, step from 1 to `steps`.

    Args:
        gamma: proximal radius; None for plain fine-tuning.
        scale: loss scale of half precision.
        on_step: called after each update; may raise to stop.
    """
    leaves = list(parameters.values())
    optimiser = make_optimiser(leaves, config)
    start = snapshot(parameters)
    first = last = torch.zeros(())
    for step in range(1, steps + 1):
        optimiser.param_groups[0]["lr"] = config.learning_rate * learning_rate_at(
            config.schedule, step, steps
        )
        last, gradients = gradient(loss(step), parameters, scale=scale)
        first = last if step == 1 else first
        for leaf, part, origin in zip(leaves, gradients, start.values(), strict=True):
            leaf.grad = part if gamma is None else part + (leaf.detach() - origin) / gamma
            del part
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        del gradients  # or they would lie beside the next ones
        if on_step is not None:
            on_step(step)
    return InnerRun(steps, first, last, distance(parameters, start))


def make_optimiser(leaves: list[Tensor], config: FineTuneConfig) -> torch.optim.Optimizer:
    """A fresh optimiser as the configuration names it."""
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            leaves, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True
        )
    return torch.optim.AdamW(
        leaves, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True
    )
