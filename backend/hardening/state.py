"""All that an outer step changes, as tensors and plain values: captured, and restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plan.methods import FACTS
from .optimisers import moments_of, put_moments
from .setup import Setup


@dataclass(frozen=True, slots=True)
class State:
    """A copy of what step `step` left: θ, its average and AdamW's moments, the regulator, the
    warnings."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def capture(setup: Setup, step: int) -> State:
    """Copy the state, which is that after outer step `step`, to the CPU.

    The last step of a method that changes all weights leaves its moments out, twice the network's
    size: no step follows that would need them. Its θ is the average, where there is one.
    """
    last = FACTS[setup.plan.method].dense and step >= setup.plan.outer_steps
    average = setup.average.values if setup.average else {}
    θ = average if last and average else setup.theta
    tensors = {"theta." + name: t.detach().cpu().clone() for name, t in θ.items()}
    values = {"regulator": setup.regulator.state(), "warnings": list(setup.warnings)}
    if last:
        return State(step, tensors, values)
    tensors |= {"average." + name: t.cpu().clone() for name, t in average.items()}
    tensors |= moments_of(setup.optimiser, list(setup.theta.values()))  # a closed form has none
    return State(step, tensors, values)


def restore(
    setup: Setup, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Put a saved state back; its warnings go before those of this call."""
    with torch.no_grad():
        for name, tensor in setup.theta.items():
            tensor.copy_(tensors["theta." + name])
    if setup.average is not None:
        kind = "average." if step < setup.plan.outer_steps else "theta."
        setup.average.restore({name: tensors[kind + name] for name in setup.theta})
    put_moments(setup.optimiser, list(setup.theta.values()), tensors, step)
    setup.regulator.restore(values["regulator"])
    setup.warnings[:] = dict.fromkeys([*values["warnings"], *setup.warnings])
