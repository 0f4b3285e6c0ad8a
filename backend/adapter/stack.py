"""Stacks two adapters into one whose change is the sum of theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from .lora import A, Adapter, B


def stacked(first: Adapter, second: Adapter) -> Adapter:
    """Return the adapter with ΔW = ΔW₁ + ΔW₂, of rank r₁ + r₂ and strength 1.

    The strengths go into B. A module that only one of them has gets zeros for the other's ranks:
    all modules of an adapter have the same rank.
    """
    tensors: dict[str, Tensor] = {}
    for module in dict.fromkeys((*first.modules, *second.modules)):
        parts = [_part(first, module, second), _part(second, module, first)]
        tensors[module + A] = torch.cat([a for a, _ in parts])
        tensors[module + B] = torch.cat([b for _, b in parts], dim=1)
    rank = first.rank + second.rank
    return Adapter(tensors, rank, float(rank))


def _part(adapter: Adapter, module: str, other: Adapter) -> tuple[Tensor, Tensor]:
    """Return A, and B times the strength; zeros of the other's shape if there is none."""
    if module + A in adapter.tensors:
        return adapter.tensors[module + A], adapter.scale * adapter.tensors[module + B]
    a, b = other.tensors[module + A], other.tensors[module + B]
    return a.new_zeros(adapter.rank, *a.shape[1:]), b.new_zeros(
        b.shape[0], adapter.rank, *b.shape[2:]
    )
