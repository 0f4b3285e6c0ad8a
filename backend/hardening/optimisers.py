"""AdamW of a run, with exact or 8-bit moments, and its moments as tensors that can be saved.

The 8-bit one is bitsandbytes' (Dettmers et al., 8-bit Optimizers via Block-wise Quantization,
arXiv:2110.02861): a byte for each number of the two moments and a scale for each block of 256.
Tensors of fewer than 4,096 numbers keep theirs in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..model.kernels import optimiser_options
from ..model.quantised import INSTALL
from ..plan.durable import Optimiser
from ..plan.hardening import HardeningPlan
from ..plan.methods import FACTS, methods_of
from .waiting import MOMENTS, WaitingAdamW

_EIGHT_BIT = ("state1", "state2", "absmax1", "absmax2")  # its tables of levels are constants
_SMALLEST, _BLOCK = 4096, 256


def make_optimiser(
    plan: HardeningPlan, parameters: list[Tensor], device: torch.device
) -> torch.optim.Optimizer:
    """Make the AdamW of a plan, which is as its method reads it."""
    betas = (0.9, 0.99 if FACTS[plan.method].dense else 0.999)
    options = {"lr": plan.learning_rate, "betas": betas, "weight_decay": plan.weight_decay}
    if optimiser_of(plan) == "adamw":
        options |= optimiser_options(device)
        if waits(plan):
            return WaitingAdamW(parameters, options)
        return torch.optim.AdamW(parameters, **options)
    if device.type == "meta":
        return _Shapes(parameters, options)
    return _eight_bit("adamw8bit", device)(parameters, **options)


def optimiser_of(plan: HardeningPlan) -> Optimiser:
    """Return the kind of AdamW that a plan's own method trains with."""
    return plan.distil.optimiser if FACTS[plan.method].distils else "adamw"


def waits(plan: HardeningPlan) -> bool:
    """Return whether gradients and moments of a plan's own method wait in main memory."""
    return FACTS[plan.method].distils and plan.distil.optimiser_waits


def check_optimiser(plan: HardeningPlan, device: torch.device | str) -> None:
    """Raise unless the AdamW that a plan asks for is installed and works on this device."""
    distils = any(FACTS[method].distils for method in methods_of(plan))
    if plan.distil.optimiser == "adamw" or not distils:
        return
    try:
        kind = _eight_bit(plan.distil.optimiser, device)
        parts = [nn.Parameter(torch.ones(n, device=device)) for n in (_SMALLEST, 1)]
        for part in parts:
            part.grad = torch.ones_like(part)
        kind(parts, lr=0.5).step()
        if any(bool((part - 0.5).abs().max() > 0.01) for part in parts):
            raise RuntimeError("a step gives wrong numbers")
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"plan: distil.optimiser is 'adamw8bit', which bitsandbytes cannot do on {device} "
            f"({error}): {INSTALL}, or set distil.optimiser to 'adamw'"
        ) from error


def moments_of(optimiser: torch.optim.Optimizer, parameters: list[Tensor]) -> dict[str, Tensor]:
    """Return the moments on the CPU, by part and place of the parameter; none before a step.

    They are copies, but for those that wait there and are too large to be held twice.
    """
    waiting = isinstance(optimiser, WaitingAdamW)
    found = {}
    for index, tensor in enumerate(parameters):
        state = optimiser.state.get(tensor, {})
        for part in (*MOMENTS, *_EIGHT_BIT):
            if part in state:
                found[f"{part}.{index}"] = state[part] if waiting else state[part].cpu().clone()
    return found


def put_moments(
    optimiser: torch.optim.Optimizer,
    parameters: list[Tensor],
    saved: Mapping[str, Tensor],
    step: int,
) -> None:
    """Put moments back that `moments_of` copied after `step` steps."""
    fused = optimiser.defaults.get("fused")  # which counts its steps on the device
    for index, tensor in enumerate(parameters):
        if f"{MOMENTS[0]}.{index}" in saved:
            place = "cpu" if isinstance(optimiser, WaitingAdamW) else tensor.device
            moments = {part: saved[f"{part}.{index}"].to(place) for part in MOMENTS}
            count = torch.tensor(float(step), device=tensor.device if fused else "cpu")
            optimiser.state[tensor] = {"step": count, **moments}
        elif f"{_EIGHT_BIT[0]}.{index}" in saved:
            eight_bit: Any = optimiser
            eight_bit.init_state(optimiser.param_groups[0], tensor, 0, index)
            state = optimiser.state[tensor]
            state["step"] = step
            for part in _EIGHT_BIT:
                if part in state:
                    state[part].copy_(saved[f"{part}.{index}"])


def _eight_bit(name: str, device: torch.device | str) -> Any:
    try:
        return import_module("bitsandbytes").optim.AdamW8bit
    except ImportError as error:
        raise ConfigError(
            f"plan: distil.optimiser is {name!r}, which needs bitsandbytes on {device} ({error}): "
            f"{INSTALL}, or set distil.optimiser to 'adamw'"
        ) from error


class _Shapes(torch.optim.Optimizer):
    """The moments of 8-bit AdamW on tensors without memory, where bitsandbytes does nothing."""

    def __init__(self, parameters: list[Tensor], options: dict[str, Any]) -> None:
        super().__init__(parameters, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None and not self.state[tensor]:
                    self.state[tensor] = _shapes(tensor)


def _shapes(tensor: Tensor) -> dict[str, Tensor]:
    if tensor.numel() < _SMALLEST:
        return {part: torch.zeros_like(tensor) for part in _EIGHT_BIT[:2]}
    scales = -(-tensor.numel() // _BLOCK)
    return {
        **{part: torch.zeros_like(tensor, dtype=torch.uint8) for part in _EIGHT_BIT[:2]},
        **{part: tensor.new_zeros(scales) for part in _EIGHT_BIT[2:]},
    }
