"""Recognises tensors of the denoiser by their names, wherever they lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..header import Header
from ..info import CheckpointInfo


class DenoiserNames:
    """Recognises the denoiser's tensors by the ends of their names, whatever the prefix."""

    def __init__(self, names: Iterable[str]) -> None:
        self._ends = {name.replace(".", "") for name in names}
        self._lengths = sorted({len(end) for end in self._ends})

    def among(self, names: Iterable[str]) -> list[str]:
        """Return the names that belong to a denoiser."""
        return [name for name in names if self._is_one(name.replace(".", ""))]

    def _is_one(self, name: str) -> bool:
        return any(name[-length:] in self._ends for length in self._lengths)


def denoiser_names(info: CheckpointInfo) -> DenoiserNames:
    """Collect the telling names of a checkpoint's denoiser, in every spelling."""
    family = info.family
    telling = re.compile(family.text_input)
    own, host = (
        info.sources(family.denoiser),
        family.tensors.denoiser_sources(info.configs[family.denoiser]),
    )
    names: set[str] = set()
    for name in own:
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and telling.search("." + module):
            names.add(name)
            if name in host:
                names.add(host[name].name)
    return DenoiserNames(names)


def others_tensors(info: CheckpointInfo) -> dict[Path, set[str]]:
    """Return the tensors of the other components by file: one of these may have layers that are
    called as the denoiser's are, and is not a copy of it."""
    found: dict[Path, set[str]] = {}
    for component, files in info.files.items():
        if component == info.family.denoiser:
            continue
        names = {source.name for source in info.sources(component).values()}
        for file in files:
            found.setdefault(file, set()).update(names)
    return found


def is_complete(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Any]) -> bool:
    """Return True if `found` has every tensor of the denoiser, in its shape."""
    return all(found.get(name) == entry.shape for name, entry in wanted.items())


def shapes_of(headers: Iterable[Header]) -> dict[str, tuple[int, ...]]:
    """Return the shapes in all these files by name."""
    return {name: entry.shape for header in headers for name, entry in header.tensors.items()}
