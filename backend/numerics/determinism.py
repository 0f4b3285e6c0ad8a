"""The conditions that the last bits of a run on the CPU depend on, besides its plan.

PyTorch splits sums and products among its threads and picks kernels by the processor's vector
instructions; either rounds differently, and training amplifies that. A run is therefore continued
on as many threads as it began with; a change of what cannot be chosen is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def this_machine() -> dict[str, Any]:
    """Threads per operation (1 or more), vector instructions, version of PyTorch."""
    return {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on `count` threads; as many as before afterwards. 1 or more."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def told_changes(began: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a warning if a run continues where numbers round differently; else nothing."""
    changes = [
        f"{name} {began[name]}, now {now[name]}"
        for name in ("instructions", "torch")
        if began[name] != now[name]
    ]
    if not changes:
        return []
    return [
        f"this run began with {'; '.join(changes)}: it continues, but its last bits differ from "
        "an uninterrupted run's; resume it where it began if they matter"
    ]
