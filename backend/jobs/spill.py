"""Notices that a driver has moved part of a run's memory from the card into system memory.

On Windows, NVIDIA's driver does so instead of raising an out-of-memory error, and steps become
many times slower. PyTorch is not told, but its allocator's own count gives it away: more than the
card has, or more growth than the free memory of the card has lost while next to none is free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..numerics.byte_sizes import MIB, format_bytes
from ..progress import Progress

_LEAST = 256 * MIB  # below it a difference means nothing
_FULL = 0.05  # share of the card that is free where it counts as full


class CardMemory(NamedTuple):
    """Bytes: of the card, free on it, and held by this process's allocator."""

    total: int
    free: int
    held: int


def card_memory(device: str) -> CardMemory | None:
    """Read the memory of a CUDA device; None for other devices."""
    import torch

    if not device.startswith("cuda"):
        return None
    free, total = torch.cuda.mem_get_info(torch.device(device))
    return CardMemory(total, free, torch.cuda.memory_reserved(torch.device(device)))


def spilled(began: CardMemory, now: CardMemory) -> int:
    """Return the bytes that seem to lie in system memory; 0 where nothing points to it."""
    beyond = now.held - now.total  # certain
    if now.free <= _FULL * now.total:
        beyond = max(beyond, (now.held - began.held) - max(0, began.free - now.free))
    return beyond if beyond >= _LEAST else 0


class SpillWatch:
    """Progress callback that warns once, after an outer step, where memory has been spilled."""

    def __init__(
        self,
        device: str,
        on_note: Callable[[list[str]], None],
    ) -> None:
        self._device, self._on_note = device, on_note
        self._began = card_memory(device)

    def __call__(self, progress: Progress, /) -> None:
        if self._began is None or not progress.values:
            return
        now = card_memory(self._device)
        size = spilled(self._began, now) if now is not None else 0
        if size:
            self._began = None
            self._on_note([warning(size)])


def warning(size: int) -> str:
    return (
        f"warning: about {format_bytes(size)} of this run seem to lie in system memory instead of "
        "on the card, which makes steps many times slower: stop it, and begin a new run with "
        "micro_batch = 1, gradient_checkpointing or a lower resolution; to get an error instead, "
        "set 'CUDA - Sysmem Fallback Policy' to 'Prefer No Sysmem Fallback' in NVIDIA's settings"
    )
