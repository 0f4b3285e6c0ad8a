"""The types in which a checkpoint is loaded for a plan."""

from __future__ import annotations

from typing import Any

import torch

from ..plan.auto import AUTO
from ..plan.hardening import HardeningPlan
from ..plan.methods import changes_all_weights

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def needs_fp32(plan: HardeningPlan) -> bool:
    """Return True if weights are trained, which cannot hold small updates in half precision."""
    full = plan.simulate == "adapter" and any(f.method == "full" for f in plan.fine_tunes)
    trained = plan.simulate == "full" or full or changes_all_weights(plan)
    return plan.precision in ("fp32", AUTO) or trained  # every precision can run from float32


def weight_types(plan: HardeningPlan) -> dict[str, Any]:
    """Return the arguments of `load_checkpoint` for a plan: types, and the linear layers' device.

    In half precision the denoiser is loaded in the type that its layers compute in. Otherwise
    autocast would cast each weight, and the graph keep the copies: as much again as the network.
    Layers that are quantised during the run stay in main memory, so that the device never holds
    their full weights.
    """
    where = {} if plan.quantization == "none" else {"linear_device": "cpu"}
    if needs_fp32(plan):
        return {"dtype": torch.float32, "denoiser_dtype": torch.float32, **where}
    return {"dtype": None, "denoiser_dtype": HALVES[plan.precision], **where}
