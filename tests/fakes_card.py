"""A CUDA card that is not there: what PyTorch would say about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from resalign.backend.numerics.byte_sizes import GIB


def put_in(
    monkeypatch: Any,
    *,
    total: float = 24.0,
    free: float = 22.0,
    held: float = 0.0,
    capability: tuple[int, int] = (8, 6),
) -> SimpleNamespace:
    """Answer questions about CUDA devices; sizes in GiB may be changed in what is returned."""
    card = SimpleNamespace(total=total, free=free, held=held)
    answers = {
        "get_device_capability": lambda device=None: capability,
        "mem_get_info": lambda device=None: (round(card.free * GIB), round(card.total * GIB)),
        "memory_reserved": lambda device=None: round(card.held * GIB),
        "get_device_properties": lambda device=None: SimpleNamespace(
            name="RTX 3090", total_memory=round(card.total * GIB)
        ),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return card
