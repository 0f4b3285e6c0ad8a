"""Names two files that are compared: by what their headers say, not by what a user hopes.

Without torch, so that a host can warn before a job starts. Anybody can write a header; `verify`
compares the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ResAlignError
from .inspect import inspect

ORIGINAL, HARDENED = "original", "hardened"


def hardened_by(path: Path) -> dict[str, Any]:
    """Return what a checkpoint's header says of its hardening; empty where it says nothing."""
    try:
        return dict(inspect(path).hardened)
    except ResAlignError:
        return {}


def called(original: Path, hardened: Path | None) -> tuple[tuple[str, str], str]:
    """Return what to call the two, and a warning; empty where they are what they are given as.

    hardened: None for a run, which is known to be.
    """
    first = hardened_by(original)
    if hardened is not None and not hardened_by(hardened):
        said = (
            f"{hardened.name} does not say that it was hardened, so it is called by its name: "
            "choose a run, or a file that Export has written"
        )
        return (own_name(original) if first else ORIGINAL, own_name(hardened)), said
    if first:
        said = f"{original.name}, chosen as the original, says that it was hardened itself"
        return (own_name(original), HARDENED), said
    return (ORIGINAL, HARDENED), ""


def own_name(path: Path) -> str:
    """Return a file's name as that of a model; never one that says what nobody knows."""
    return f"{path.stem} (a file)" if path.stem in _TAKEN else path.stem


_TAKEN = (ORIGINAL, HARDENED, "plain", "oracle", "before", "after")


def same_file(one: str, other: str) -> bool:
    """Return whether two paths lead to one file, also by a link."""
    try:
        return one == other or Path(one).samefile(other)
    except OSError:
        return False
