"""Walks folders with links, which may loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def walk_once(folder: Path | str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (path, folders, names) as `os.walk` does, links followed, but each folder only once.

    What the caller removes from `folders` is not entered.
    """
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield here, folders, names
