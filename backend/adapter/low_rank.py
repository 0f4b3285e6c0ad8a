"""The nearest LoRA of a dense adapter, and how much of the change it leaves out.

For each weight of two or more dimensions the r largest singular values of ΔW = U S Vᵀ are kept,
which is the nearest matrix of rank r (Eckart & Young, 1936): B = U √S, A = √S Vᵀ. A convolution's
ΔW is read as [out, in · k · k]. Biases and norms have no place in a LoRA and are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ExportError
from .dense import DenseAdapter
from .lora import A, Adapter, B


class LowRank(NamedTuple):
    """error: ‖ΔW − what the LoRA holds‖ / ‖ΔW‖ over all changed tensors, 0 to 1."""

    adapter: Adapter
    error: float


def nearest_lora(dense: DenseAdapter, rank: int) -> LowRank:
    """Return the nearest LoRA of `rank` and its relative error."""
    tensors: dict[str, Tensor] = {}
    total = left = 0.0
    for name in dense.parameters:
        change = dense.change(name)
        whole = float(change.double().square().sum())
        total += whole
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or change.dim() not in (2, 4):
            left += whole
            continue
        u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
        left += float(s[rank:].double().square().sum())
        root = s[:rank].sqrt()
        a, b = root[:, None] * v[:rank], u[:, :rank] * root
        lacking = rank - len(s)
        if lacking > 0:  # all modules of an adapter have the same rank
            a = torch.cat([a, a.new_zeros(lacking, a.shape[1])])
            b = torch.cat([b, b.new_zeros(len(b), lacking)], dim=1)
        tensors[module + A] = a.reshape(rank, *change.shape[1:])
        tensors[module + B] = b if change.dim() == 2 else b[:, :, None, None].contiguous()
    if not tensors:
        raise ExportError("the run changed no weight that a LoRA could hold: export a checkpoint")
    return LowRank(Adapter(tensors, rank, float(rank)), (left / total) ** 0.5 if total else 0.0)
