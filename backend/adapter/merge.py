"""The adapter added into a weight, and how much of it survives the weight's own precision.

W' = round(W + ΔW) to the type W is stored in. The sum is formed in float32 (float64 for float64
weights); the type keeps changes above half its spacing only: 2⁻¹¹ of the weight's size in fp16,
2⁻⁸ in bf16, 2⁻⁴ in fp8 (e4m3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ExportError

_BLOCK = 1 << 17  # elements at a time: intermediate results fit in a processor's cache


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
        """True if more than half of the update (by norm) was lost to rounding."""
        return self.error_norm > 0.5 * self.change_norm


def together(pieces: Sequence[Merged]) -> Merged:
    """Join the norms of a tensor's pieces; `weight` is the first one's and means nothing."""
    norms = (
        math.hypot(*(getattr(piece, name) for piece in pieces))
        for name in ("weight_norm", "change_norm", "error_norm")
    )
    return Merged(pieces[0].weight, *norms)


def merged_weight(weight: Tensor, delta: Tensor, name: str) -> Merged:
    """Return W + ΔW in the type of W. `name` is only for error messages."""
    if weight.shape != delta.shape:
        raise ExportError(
            f"{name} has shape {list(weight.shape)} in the checkpoint, but the adapter changes "
            f"{list(delta.shape)}: it was made for another model"
        )
    wide = torch.promote_types(weight.dtype, torch.float32) if weight.dtype.itemsize > 1 else None
    result = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    old, new = weight.contiguous().reshape(-1), result.reshape(-1)
    change = delta.reshape(-1)
    squared = [0.0, 0.0, 0.0]  # of W, ΔW and the error
    for begin in range(0, len(old), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        weight_ = old[part].to(wide or torch.float32)
        delta_ = change[part].to(weight_.device, weight_.dtype)
        total = weight_ + delta_
        new[part] = total
        error = (new[part].to(weight_.dtype) - weight_).sub_(delta_)
        norms = [torch.linalg.vector_norm(t).item() for t in (weight_, delta_, error)]
        # Casts to fp8 may stop at the largest value instead of becoming infinite
        fits = wide is not None or total.abs().max() <= torch.finfo(weight.dtype).max
        if not (math.isfinite(sum(norms)) and fits):
            raise ExportError(_why_not_finite(name, weight, delta))
        squared = [sum_ + norm**2 for sum_, norm in zip(squared, norms, strict=True)]
    return Merged(result, *(sum_**0.5 for sum_ in squared))


def _why_not_finite(name: str, weight: Tensor, delta: Tensor) -> str:
    kind = str(weight.dtype).removeprefix("torch.")
    weight, delta = weight.double(), delta.to(weight.device, torch.float64)
    if not torch.isfinite(weight).all():
        return f"{name} already holds NaN or infinity in the source: fetch or repair that file"
    if not torch.isfinite(delta).all():
        return f"{name}: the adapter holds NaN or infinity; the hardening run has diverged"
    return (
        f"{name}: the changed weights do not fit into {kind} (largest is "
        f"{(weight + delta).abs().max().item():.3g}): harden a copy with a wider type, or lower "
        "the adapter's alpha"
    )
