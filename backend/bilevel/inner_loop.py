"""A simulated fine-tuning run from φ0 to φ*, with a fresh optimiser.

Plain fine-tuning minimises L_ft(φ); with `gamma` the proximal problem
L_ft(φ) + ‖φ − φ0‖² / 2γ is followed instead (Li et al., arXiv:2507.16302), whose stationary
point the implicit gradient assumes. Moments never carry over between runs, as the simulated users
are different people.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.kernels import optimiser_options
from ..plan.fine_tune import FineTuneConfig, LearningRateSchedule
from .vectors import Loss, Parameters, Terms, distance, gradient, gradients, snapshot


@dataclass(frozen=True, slots=True)
class InnerRun:
    """Figures of a run: steps, first and last loss, L2 length of its weight move (scalars)."""

    steps: int
    first_loss: Tensor
    last_loss: Tensor
    move: Tensor


def learning_rate_at(schedule: LearningRateSchedule, step: int, steps: int) -> float:
    """Return the share of the full learning rate at `step` (1 to `steps`)."""
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
    user = _User(parameters, config, steps, gamma)
    for step in range(1, steps + 1):
        user.update(step, *gradient(loss(step), parameters, scale=scale))
        if on_step is not None:
            on_step(step)
    return user.run()


def inner_loops(
    users: Sequence[Parameters],
    terms: Callable[[int, Sequence[int]], Sequence[Terms]],
    configs: Sequence[FineTuneConfig],
    steps: Sequence[int],
    *,
    gamma: float | None = None,
    scale: float = 1.0,
    on_step: Callable[[int], None] | None = None,
) -> list[InnerRun]:
    """Train several users in lockstep, in passes that they share; shorter runs end sooner.

    Args:
        users: each one's parameters, trained in place.
        terms: given an inner step and the users still at work, the summands of their losses.
        configs, steps: of each user.
        gamma, scale, on_step: as for `inner_loop`.
    """
    runs = [_User(*given, gamma) for given in zip(users, configs, steps, strict=True)]
    for step in range(1, max(steps) + 1):
        at_work = [number for number, count in enumerate(steps) if step <= count]
        found = gradients(terms(step, at_work), [users[number] for number in at_work], scale=scale)
        for number, (value, parts) in zip(at_work, found, strict=True):
            runs[number].update(step, value, parts)
        del found
        if on_step is not None:
            on_step(step)
    return [run.run() for run in runs]


class _User:
    """One user's optimiser and progress."""

    def __init__(
        self, parameters: Parameters, config: FineTuneConfig, steps: int, gamma: float | None
    ) -> None:
        self._parameters, self._config, self._steps, self._gamma = parameters, config, steps, gamma
        self._leaves = list(parameters.values())
        self._optimiser = make_optimiser(self._leaves, config)
        self._start = snapshot(parameters)
        self._first = self._last = torch.zeros(())

    def update(self, step: int, loss: Tensor, gradients: Sequence[Tensor]) -> None:
        """Update the weights by the loss and gradient at their present values."""
        self._optimiser.param_groups[0]["lr"] = self._config.learning_rate * learning_rate_at(
            self._config.schedule, step, self._steps
        )
        self._last, self._first = loss, loss if step == 1 else self._first
        gamma, starts = self._gamma, self._start.values()
        for leaf, part, origin in zip(self._leaves, gradients, starts, strict=True):
            leaf.grad = part if gamma is None else part + (leaf.detach() - origin) / gamma
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def run(self) -> InnerRun:
        return InnerRun(
            self._steps, self._first, self._last, distance(self._parameters, self._start)
        )


def make_optimiser(leaves: list[Tensor], config: FineTuneConfig) -> torch.optim.Optimizer:
    """Make a fresh optimiser of the kind that the configuration names."""
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            leaves, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True
        )
    return torch.optim.AdamW(
        leaves, lr=config.learning_rate, weight_decay=config.weight_decay,
        **(optimiser_options(leaves[0].device) or {"foreach": True}),
    )  # fmt: skip
