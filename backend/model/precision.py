"""The arithmetic that `precision = "auto"` stands for on a device.

bf16 needs a card of compute capability 8.0 (Ampere) or later; fp16 runs on the tensor cores of 7.0
(Volta, Turing). The adapter is float32 in all of them. A solve by finite differences subtracts two
gradients that agree in most digits, so it stays in fp32: on the recorded network of
benchmarks/hypergradient.py its products are off by 7e-5 in fp32, by 0.06 with the ten bits of
TF32, and by 0.75 in bf16.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..plan.auto import AUTO, decided
from ..plan.hardening import HardeningPlan
from ..plan.kernels import Precision
from ..plan.methods import FACTS, methods_of

_BF16, _FP16 = (8, 0), (7, 0)  # the least compute capability


def with_precision(plan: HardeningPlan, device: torch.device | str) -> HardeningPlan:
    """Return the plan with the precision that it has on this device; an explicit one stays."""
    precision = decided_precision(plan, device)
    return plan if plan.precision == precision else replace(plan, precision=precision)


def decided_precision(plan: HardeningPlan, device: torch.device | str) -> Precision:
    return best_precision(plan, device) if plan.precision == AUTO else plan.precision


def decided_on(plan: HardeningPlan, device: torch.device | str) -> HardeningPlan:
    """Return the plan without `auto`: precision by the device, users in turn, whole batches."""
    return decided(with_precision(plan, device))


def best_precision(plan: HardeningPlan, device: torch.device | str) -> Precision:
    """Return the quickest precision that the device and the plan's solve allow."""
    device = torch.device(device)
    if device.type != "cuda" or needs_all_digits(plan):
        return "fp32"
    capability = torch.cuda.get_device_capability(device)
    if capability >= _BF16:
        return "bf16"
    return "fp16" if capability >= _FP16 else "fp32"


def needs_all_digits(plan: HardeningPlan) -> bool:
    """Return True if simulated users are solved for by differences of gradients."""
    simulates = any(FACTS[method].simulates_users for method in methods_of(plan))
    return simulates and bool(plan.fine_tunes) and plan.solver.takes_differences
