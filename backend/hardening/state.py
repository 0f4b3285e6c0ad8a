"""All that an outer step changes, as tensors and plain values: captured, and restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plan.methods import FACTS
from .setup import Setup

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class State:
    """A copy of what step `step` left: θ and AdamW's moments, the regulator, the warnings."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def capture(setup: Setup, step: int) -> State:
    """Copy the state, which is that after outer step `step`, to the CPU.

    The last step of a method that changes all weights leaves its moments out, twice the network's
    size: no step follows that would need them.
    """
    tensors = {"theta." + name: t.detach().cpu().clone() for name, t in setup.theta.items()}
    values = {"regulator": setup.regulator.state(), "warnings": list(setup.warnings)}
    if FACTS[setup.plan.method].dense and step >= setup.plan.outer_steps:
        return State(step, tensors, values)
    for index, tensor in enumerate(setup.theta.values()):
        if tensor in setup.optimiser.state:  # a closed form has none
            moments = setup.optimiser.state[tensor]
            tensors |= {f"{part}.{index}": moments[part].cpu().clone() for part in _MOMENTS}
    return State(step, tensors, values)


def restore(
    setup: Setup, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Put a saved state back; its warnings go before those of this call."""
    fused = setup.optimiser.defaults["fused"]  # which counts its steps on the device
    place = setup.denoiser.model.device if fused else "cpu"
    for index, (name, tensor) in enumerate(setup.theta.items()):
        with torch.no_grad():
            tensor.copy_(tensors["theta." + name])
        if f"{_MOMENTS[0]}.{index}" in tensors:
            moments = {part: tensors[f"{part}.{index}"].to(tensor.device) for part in _MOMENTS}
            count = torch.tensor(float(step), device=place)
            setup.optimiser.state[tensor] = {"step": count, **moments}
    setup.regulator.restore(values["regulator"])
    setup.warnings[:] = dict.fromkeys([*values["warnings"], *setup.warnings])
