"""The adapter added into a weight, and how much of it survives the weight's own precision.

W' = round(W + ΔW) to the type W is stored in. The sum is formed in float32 (float64 for float64
weights); the type keeps changes above half its spacing only: 2⁻¹¹ of the weight's size in fp16,
2⁻⁸ in bf16, 2⁻⁴ in fp8 (e4m3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ExportError


class Merged(NamedTuple):
    """weight: W', in W's type. Norms are Frobenius norms, of W, ΔW and (W' − W) − ΔW."""

    weight: Tensor
    weight_norm: float
    change_norm: float
    error_norm: float

    @property
    def relative_change(self) -> float:
        return self.change_norm / self.weight_norm if self.weight_norm else float("inf")

    @property
    def lost(self) -> bool:
        """More than half of the update (by norm) fell to rounding."""
        return self.error_norm > 0.5 * self.change_norm


def merged_weight(weight: Tensor, delta: Tensor, name: str) -> Merged:
    """W + ΔW in the type of W. `name` is for the error message alone."""
    if weight.shape != delta.shape:
        raise ExportError(
            f"{name} has shape {list(weight.shape)} in the checkpoint, but the adapter changes "
            f"{list(delta.shape)}: it was made for another model"
        )
    wide = torch.promote_types(weight.dtype, torch.float32) if weight.dtype.itemsize > 1 else None
    weight_ = weight.to(wide or torch.float32)
    delta_ = delta.to(weight_.device, weight_.dtype)
    total = weight_ + delta_
    result = total.to(weight.dtype)
    kept = result.to(weight_.dtype) - weight_
    # casts to fp8 may stop at the largest value instead of becoming infinite
    if not torch.isfinite(kept).all() or total.abs().max() > torch.finfo(weight.dtype).max:
        raise ExportError(_why_not_finite(name, weight_, delta_, weight.dtype))
    norms = (torch.linalg.vector_norm(t).item() for t in (weight_, delta_, kept.sub_(delta_)))
    return Merged(result, *norms)


def _why_not_finite(name: str, weight: Tensor, delta: Tensor, dtype: torch.dtype) -> str:
    kind = str(dtype).removeprefix("torch.")
    if not torch.isfinite(weight).all():
        return f"{name} already holds NaN or infinity in the source: fetch or repair that file"
    if not torch.isfinite(delta).all():
        return f"{name}: the adapter holds NaN or infinity; the hardening run has diverged"
    return (
        f"{name}: the changed weights do not fit into {kind} (largest is "
        f"{(weight + delta).abs().max().item():.3g}): harden a copy with a wider type, or lower "
        "the adapter's alpha"
    )
