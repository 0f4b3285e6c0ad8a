"""Resets of the weights that matter to the concept more than to the rest, by Fisher ratio.

The diagonal of the Fisher information is taken as the mean squared gradient of single samples.
A weight's ratio is g²(concept) / (g²(rest) + 0.01 · mean of g²(rest) in its tensor); those with the
highest ratios of each tensor become the tensor's mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...bilevel.vectors import Loss, Parameters, gradient

WeightedLosses = Sequence[tuple[float, Callable[[], Loss]]]  # each loss is of one sample

_DAMPING = 0.01


def squared_gradients(
    losses: WeightedLosses, parameters: Parameters, *, scale: float = 1.0
) -> dict[str, Tensor]:
    """Return the weighted mean of the squared gradients of the losses, by parameter."""
    sums = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    total = sum(weight for weight, _ in losses)
    for weight, make in losses:
        _, found = gradient(make(), parameters, scale=scale)
        torch._foreach_addcmul_(list(sums.values()), list(found), list(found), weight / total)
    return sums


def fisher_ratio(concept: Tensor, rest: Tensor) -> Tensor:
    """Return how much more each weight matters to the concept; 0 where it matters to neither."""
    return concept / (rest + _DAMPING * rest.mean()).clamp(min=torch.finfo(rest.dtype).tiny)


def reset(weight: Tensor, ratio: Tensor, share: float) -> Tensor:
    """Return the weight with this share of it, where the ratio is highest, set to its mean."""
    flat = weight.detach().flatten().clone()
    highest = torch.topk(ratio.flatten(), int(share * len(flat))).indices
    flat[highest] = flat.mean()
    return flat.view_as(weight)
