"""Computes the change ΔW of a weight W from the tensors of each kind of LoRA file.

    LoRA    ΔW = s · up·down, with a middle core for convolutions ("LoCon"): s · up·mid·down.
            Hu et al., arXiv:2106.09685
    LoHa    ΔW = s · (w1_a·w1_b) ⊙ (w2_a·w2_b); each factor may be a Tucker core t between them.
    LoKr    ΔW = s · w1 ⊗ w2; each factor whole, or a product; w2 may have a Tucker core.
            Both: Yeh et al., arXiv:2309.14859
    DoRA    W' = m · (W + ΔW) / ‖W + ΔW‖ with ΔW of any kind above, so the change is W' − W. The
            norm is that of each output, or (LyCORIS) of each input, depending on m's shape.
            Liu et al., arXiv:2402.09353
    diff    ΔW itself, of weights, biases and norms.

s is alpha / rank. Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
Scale = Callable[[int | None], float]  # rank (None: the file has no low-rank factor) to s

_STRENGTH = {"alpha", "dora_scale", "magnitude"}
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
# Sets of parts that make up a kind: (kind, needed, allowed besides alpha and magnitudes)
_KINDS: tuple[tuple[str, set[str], set[str]], ...] = (
    ("LoRA", {"down", "up"}, {"mid"}),
    ("LoHa", _LOHA, set()),
    ("LoHa", _LOHA | {"hada_t1", "hada_t2"}, set()),
    *(
        ("LoKr", first | second, set())
        for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        for second in (
            {"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"},
        )
    ),
)  # fmt: skip
_WEIGHT_DIFFS, _BIAS_DIFFS = {"diff", "w_norm"}, {"diff_b", "b_norm"}


def kinds_of(parts: set[str]) -> dict[str, tuple[str, set[str]]] | None:
    """Return the parts that change a module's `weight` and its `bias`, each with their kind.

    Returns None where the parts are incomplete or do not belong together.
    """
    found: dict[str, tuple[str, set[str]]] = {}
    bias = parts & _BIAS_DIFFS
    if len(bias) == 1:
        found["bias"] = "diff", bias
    rest = parts - bias
    if len(rest) == 1 and rest <= _WEIGHT_DIFFS:
        found["weight"] = "diff", rest
    elif rest:
        if {"dora_scale", "magnitude"} <= rest:
            return None
        core = rest - _STRENGTH
        for kind, needed, allowed in _KINDS:
            if needed <= core <= needed | allowed:
                found["weight"] = kind, rest
    taken = [part for _, names in found.values() for part in names]
    return found if found and sorted(taken) == sorted(parts) else None


def weight_change(kind: str, parts: Parts, weight: Tensor, scale: Scale) -> Tensor:
    """Return ΔW of a weight (or bias) in its shape; a ValueError says which shapes do not fit.

    parts: in float32, on any device. weight: W in float32; only DoRA uses it.
    """
    if kind == "diff":
        (change,) = parts.values()
        return fitted(change, weight.shape)
    product, rank = _PRODUCTS[kind](parts)
    change = fitted(product, weight.shape) * scale(rank)
    for name in ("dora_scale", "magnitude"):
        if name in parts:
            total = weight + change
            return total * _magnitude(parts[name], total, inputs=name == "dora_scale") - weight
    return change


def low_rank(parts: Parts) -> tuple[Tensor, int]:
    """Return up·down or up·mid·down, and the rank.

    down: [rank, in] or [rank, in, k, k]; up: [out, rank] or [out, rank, 1, 1]; mid, where there
    is one: [rank, rank, k, k], with down [rank, in, 1, 1].
    """
    down, up = parts["down"], parts["up"]
    if prod(up.shape[2:]) != 1 or up.dim() < 2 or down.dim() < 2:
        raise ValueError(f"up is {list(up.shape)} and down {list(down.shape)}")
    up = up.flatten(1)
    if "mid" in parts:
        _same(prod(down.shape[2:]), 1)
        return _tucker(parts["mid"], up.T, down.flatten(1)), len(down)
    _same(up.shape[1], len(down))
    return (up @ down.flatten(1)).view(len(up), *down.shape[1:]), len(down)


def hadamard(parts: Parts) -> tuple[Tensor, int]:
    """Return (w1_a·w1_b) ⊙ (w2_a·w2_b) and the rank.

    w_a: [out, rank], w_b: [rank, in · k · k]; with a core t [rank, rank, k, k] instead w_a is
    [rank, out] and w_b [rank, in].
    """
    first, second = (
        _factor(parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"], parts.get(f"hada_t{i}"))
        for i in (1, 2)
    )
    if first.shape != second.shape:
        raise ValueError(f"its factors are {list(first.shape)} and {list(second.shape)}")
    return first * second, len(parts["hada_w1_b"])


def kronecker(parts: Parts) -> tuple[Tensor, int | None]:
    """Return w1 ⊗ w2 and the rank, which is None where neither factor is a product.

    w1: [out_1, in_1]; w2: [out_2, in_2] or [out_2, in_2, k, k]. Where both factors are products
    the rank is that of w2 (they are equal).
    """
    factors, rank = [], None
    for i in (1, 2):
        if f"lokr_w{i}" in parts:
            factors.append(parts[f"lokr_w{i}"])
            continue
        a, b = parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]
        factors.append(_factor(a, b, parts.get(f"lokr_t{i}")))
        rank = len(b)
    first, second = factors
    if first.dim() != 2 or second.dim() < 2:
        raise ValueError(f"w1 is {list(first.shape)} and w2 {list(second.shape)}")
    first = first.reshape(*first.shape, *[1] * (second.dim() - 2))
    return torch.kron(first, second.contiguous()), rank


def fitted(change: Tensor, shape: torch.Size) -> Tensor:
    """Reshape a change to its weight's shape: 1 × 1 convolutions are matrices, and kernels may be
    written flat, [out, in · k · k]."""
    if change.shape == shape:
        return change
    flat_kernels = change.dim() == 2 and len(shape) > 2
    one_by_one = change.dim() > 2 and prod(change.shape[2:]) == 1 and len(shape) == 2
    same_rows = change.dim() > 0 and len(change) == shape[0] and change.numel() == prod(shape)
    if not (same_rows and (flat_kernels or one_by_one)):
        raise ValueError(f"it changes {list(change.shape)}, the model has {list(shape)} there")
    return change.reshape(shape)


def _factor(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    if a.dim() != 2 or b.dim() != 2:
        raise ValueError(f"factors are {list(a.shape)} and {list(b.shape)}")
    if core is not None:
        return _tucker(core, a, b)
    _same(a.shape[1], len(b))
    return a @ b


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Σ_ij core_ij · a_i ⊗ b_j: [out, in, k, k] of core [i, j, k, k], a [i, out], b [j, in]."""
    if core.dim() < 3 or core.shape[:2] != (len(a), len(b)):
        raise ValueError(f"core {list(core.shape)}, factors {list(a.shape)}, {list(b.shape)}")
    return torch.einsum("ij...,ip,jq->pq...", core, a, b)


def _magnitude(magnitude: Tensor, total: Tensor, *, inputs: bool) -> Tensor:
    """m / ‖total‖, to multiply `total` with. inputs: m may belong to the inputs, [1, in, 1, 1]."""
    ones = [1] * (total.dim() - 2)
    outputs, columns = total.shape[:2]
    row = magnitude.dim() > 1 and len(magnitude) == 1 and outputs > 1
    by_input = inputs and row and magnitude.numel() == columns
    if not by_input and magnitude.numel() != outputs:
        raise ValueError(
            f"its magnitudes are {list(magnitude.shape)}, the model has {list(total.shape)} there"
        )
    kept, shape = (1, (1, columns, *ones)) if by_input else (0, (outputs, 1, *ones))
    norm = total.transpose(0, kept).flatten(1).norm(dim=1).view(shape)
    return magnitude.reshape(shape) / norm.clamp_min(torch.finfo(norm.dtype).eps)


def _same(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"ranks {found} and {wanted} do not fit together")


_PRODUCTS: dict[str, Callable[[Parts], tuple[Tensor, int | None]]] = {
    "LoRA": low_rank, "LoHa": hadamard, "LoKr": kronecker,
}  # fmt: skip
