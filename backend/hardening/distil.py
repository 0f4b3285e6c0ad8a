"""One step of distillation: all weights move towards the original's predictions on what must stay.

    L = mean_i w(t_i) ‖ε_θ(x_i, c'_i) − ε(x_i, c_i)‖²,  x_i a noised retain latent, ε the original

c_i is the sample's own caption (or a blend of two, `mixed_share`), and so is c'_i, except for a
share of the batch: there c'_i is a caption of the concepts, so that their prompts draw something
harmless, and c_i is the concept's anchor if `towards` says so. w is `NoiseProcess.error_weights`.
No picture of a concept is used, so what an erasure took out of the weights is not taught again.
Source: Lee et al., Distillation Robustifies Unlearning, arXiv:2506.06278, for language models,
where the student's weights are shrunk and made noisy; here they are erased in closed form.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..bilevel.vectors import Terms, norm_and_clip
from ..plan.durable import DistilConfig
from ..run.records import StepRecord
from .recipe import descend
from .setup import Setup
from .stored import numbers_left
from .terms import Task, Term
from .training import require_finite
from .waiting import WaitingAdamW


def distil_step(setup: Setup, step: int) -> StepRecord:
    """Take step `step`, from 1."""
    started, plan, θ = time.perf_counter(), setup.plan, setup.theta
    rate = distillation_rate(plan.distil, step, plan.outer_steps)
    if setup.feed.stored is not None and not setup.feed.stored.filled:
        setup.feed.stored.fill(numbers_left(plan, step), setup.feed.distilled)
    terms = setup.feed.distillation(step)
    errors, total = (_alone if setup.alone else _spread)(setup, terms)
    harm, retain = errors
    norm = norm_and_clip(list(total.values()), plan.gradient_norm)
    require_finite(setup, step, {"harm": harm, "retain": retain, "gradient": norm})
    with setup.changing():
        if isinstance(setup.optimiser, WaitingAdamW):
            setup.optimiser.update(list(total.values()), rate)
        else:
            descend(θ, total, setup.optimiser, learning_rate=rate)
        setup.agree()
        if setup.average is not None:
            setup.average.update(θ, step)
    share = plan.distil.concept_share  # of the batch, in the mean over steps
    return StepRecord(
        step=step, harm=_mean(harm, share), retain=_mean(retain, 1 - share),
        resilience_weight=0.0, retain_weight=1.0,
        learning_rate=rate, gradient_norm=float(norm), seconds=time.perf_counter() - started,
        simulations=(),
    )  # fmt: skip


def distillation_rate(config: DistilConfig, step: int, steps: int) -> float:
    """Return the learning rate of step 1 to `steps`: a linear rise, times a cosine towards zero."""
    rise = min(1.0, step / config.warm_up_steps) if config.warm_up_steps else 1.0
    return config.learning_rate * rise * (1 + math.cos(math.pi * (step - 1) / steps)) / 2


def rehearse_distillation(setup: Setup) -> None:
    """Take a step as it is in the middle of a run, when AdamW has its moments."""
    if not isinstance(setup.optimiser, WaitingAdamW):  # whose moments the device does not hold
        for tensor in setup.theta.values():
            tensor.grad = torch.zeros_like(tensor)
        setup.optimiser.step()
        setup.optimiser.zero_grad(set_to_none=True)
    distil_step(setup, 1)


Found = tuple[Tensor, dict[str, Tensor]]  # the errors of both parts, [2], and the gradient


def _alone(setup: Setup, terms: Sequence[Terms]) -> Found:
    """Add the gradients up where they arise: a second set would be as large as the network."""
    scale, optimiser = setup.denoiser.loss_scale, setup.optimiser
    if isinstance(optimiser, WaitingAdamW):
        with optimiser.gathering() as waiting:
            values = _backward(setup, terms)
        total = dict(zip(setup.theta, waiting, strict=True))
    else:
        values = _backward(setup, terms)
        total = {
            name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            for name, tensor in setup.theta.items()
        }
    if scale != 1:
        torch._foreach_mul_(list(total.values()), 1 / scale)
    return torch.stack(values).sum(0), total


def _backward(setup: Setup, terms: Sequence[Terms]) -> list[Tensor]:
    """Add the terms' gradients to those of the weights; return the terms' values."""
    scale, leaves = setup.denoiser.loss_scale, list(setup.theta.values())
    values = []
    for term in terms:
        value = term()
        torch.autograd.backward(value.sum() * scale, inputs=leaves)
        values.append(value.detach())
        del value
    return values


def _spread(setup: Setup, terms: Sequence[Terms]) -> Found:
    """Let the ranks share the terms, and add their gradients up in the same order."""
    place = "cpu" if isinstance(setup.optimiser, WaitingAdamW) else None
    scale, leaves = setup.denoiser.loss_scale, list(setup.theta.values())

    def work(term: Terms) -> list[Term]:
        value = term()
        found = torch.autograd.grad(value.sum() * scale, leaves, allow_unused=True)
        gradient = tuple(
            torch.zeros_like(leaf, device=place) if part is None else part.to(place or leaf.device)
            for leaf, part in zip(leaves, found, strict=True)
        )
        return [Term("distillation", 1.0, value.detach(), gradient)]

    total = {name: torch.zeros_like(tensor, device=place) for name, tensor in setup.theta.items()}
    values = []
    for found in setup.compute([Task(1.0, partial(work, term)) for term in terms]):
        for term in found:
            torch._foreach_add_(list(total.values()), list(term.gradient))
            values.append(term.value)
    if scale != 1:
        torch._foreach_mul_(list(total.values()), 1 / scale)
    return torch.stack(values).sum(0), total


def _mean(error: Tensor, share: float) -> float:
    """Return the weighted error of a part of the batch by its share; 0 where that is 0."""
    return float(error) / share if share else 0.0
