"""Reads from the environment whether this process is one of several (`accelerate`, `torchrun`).

Reading the environment imports nothing heavy, so a single process does not pay for it.
"""

from __future__ import annotations

import os

from .ranks import ALONE, Ranks

PATIENCE = 1800.0  # seconds to wait for a rank that lives but does not arrive
# Names of torchrun and accelerate, Intel MPI, Open MPI, MVAPICH (accelerate starts CPUs by MPI).
_NAMES = {
    "RANK": ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "LOCAL_RANK": (
        "LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK",
    ),
}  # fmt: skip


def place_in_environment() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) for a single process."""
    rank, count = _number("RANK"), _number("WORLD_SIZE")
    return (0, 1) if rank is None or count is None or count < 2 else (rank, count)


def join_ranks(patience: float = PATIENCE) -> Ranks:
    """Connect to the other processes of this run; return when all have arrived.

    A single process returns at once. Use it as a context manager, so that the other ranks learn
    how this one ended.

    Args:
        patience: seconds to wait for a rank that lives but does not arrive; one without a
            heartbeat is given up after 30 at most.
    """
    rank, count = place_in_environment()
    if count == 1:
        return ALONE
    from .process_group import ProcessGroup

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    return ProcessGroup(rank, count, _number("LOCAL_RANK") or 0, patience=patience)


def _number(what: str) -> int | None:
    for name in _NAMES[what]:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return None
