"""In which types a checkpoint is loaded for a plan."""

from __future__ import annotations

from typing import Any

import torch

from ..plan.hardening import HardeningPlan

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def needs_fp32(plan: HardeningPlan) -> bool:
    """Weights that are trained cannot hold small updates in half precision."""
    full = plan.simulate == "adapter" and any(f.method == "full" for f in plan.fine_tunes)
    return plan.precision == "fp32" or plan.simulate == "full" or full


def weight_types(plan: HardeningPlan) -> dict[str, Any]:
    """What to give `load_checkpoint` for a plan: types, and where linear layers go.

    In half precision the denoiser is loaded in the type that its layers compute in. Otherwise
    autocast would cast each weight, and the graph keep the copies: as much again as the network.
    What is quantised during the run stays in main memory: the device never holds it as it is.
    """
    where = {} if plan.quantization == "none" else {"linear_device": "cpu"}
    if needs_fp32(plan):
        return {"dtype": torch.float32, "denoiser_dtype": torch.float32, **where}
    return {"dtype": None, "denoiser_dtype": HALVES[plan.precision], **where}
