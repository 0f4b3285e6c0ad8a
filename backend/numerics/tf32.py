"""TF32: float32 products on the tensor cores of NVIDIA's cards, with ten bits of the operands.

PyTorch keeps it in flags of the process, which belong to the host: they are set for a block and
put back. It knows them under two names, and raises where both were used to set different values,
so each is read as far as it can be read. NVIDIA_TF32_OVERRIDE=0, NVIDIA's own variable, turns TF32
off whatever the flags say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_NEW = "fp32_precision"  # of PyTorch 2.9 and later


@contextmanager
def tf32(on: bool | None) -> Iterator[None]:
    """Allow TF32 in products and convolutions, or forbid it. None: leave all as it is."""
    if on is None:
        yield
        return
    owners: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    parts = (torch.backends.cuda.matmul, *_parts(torch.backends.cudnn))
    before = [_read(owner, "allow_tf32") for owner in owners]
    before_new = [_read(part, _NEW) for part in parts]
    try:
        for owner in owners:
            owner.allow_tf32 = on
        yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            if value is not None:
                owner.allow_tf32 = value
        for part, value in zip(parts, before_new, strict=True):
            if value is not None and _read(part, _NEW) != value:
                setattr(part, _NEW, value)


def _parts(cudnn: Any) -> tuple[Any, ...]:
    return tuple(getattr(cudnn, name) for name in ("conv", "rnn") if hasattr(cudnn, name))


def _read(owner: Any, name: str) -> Any:
    """Return a flag; None where this version has none, or refuses as the names disagree."""
    try:
        return getattr(owner, name, None)
    except RuntimeError:
        return None
