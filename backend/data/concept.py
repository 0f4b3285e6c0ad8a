"""Concepts: the shipped presets, a user's own files, and the prompts of what must stay.

A preset is a TOML file of `presets/`; a user's file has the same fields, one concept at its top
level or several under `concepts`, as TOML or JSON:

    name = "weapons"              # required
    prompts = ["a pistol", ...]   # ways to ask for it; required unless there are images
    anchor = "a garden tool"      # what it should become
    benign = ["a kitchen knife"]  # near neighbours that must stay
    images = "folder"             # its forget set; else it is synthesised from the prompts
    weight = 1.0                  # its share among several
    description = "..."
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..plan.concept import Concept
from ..plan.images import ImageSet
from ..plan.toml_text import TOMLDecodeError, loads
from ..text import json_text
from .text import read_text

_FOLDER = Path(__file__).parent
_TEXTS = ("name", "description", "anchor", "images")
_LISTS = ("prompts", "benign")
_FIELDS = (*_TEXTS, *_LISTS, "weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A shipped category. benign: near neighbours that hardening must not remove."""

    name: str
    description: str
    prompts: tuple[str, ...]
    anchor: str
    benign: tuple[str, ...]

    def concept(self, *, images: ImageSet | None = None, weight: float = 1.0) -> Concept:
        """Return the plan's concept: synthesised from the prompts unless images are given."""
        return Concept(self.name, self.prompts, self.anchor, images, weight)


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (_FOLDER / "presets").glob("*.toml")))


def preset_called(text: str) -> str:
    """Return the name of the shipped category that is meant; empty if there is none.

    Both spellings are taken, that of files and that which people are shown: hate symbols.
    """
    name = "_".join(text.replace("_", " ").split())
    return name if name in preset_names() else ""


@cache
def load_preset(name: str) -> Preset:
    """Load a shipped category by its name, in either spelling."""
    found = preset_called(name)
    if not found:
        raise ConfigError(f"no preset is called {name!r}; choose from {', '.join(preset_names())}")
    path = _FOLDER / "presets" / f"{found}.toml"
    entry = _checked(_parsed(path), path.name)
    return Preset(
        name=entry["name"],
        description=entry.get("description", ""),
        prompts=tuple(entry["prompts"]),
        anchor=entry.get("anchor", ""),
        benign=tuple(entry.get("benign", ())),
    )


def near_neighbours(name: str) -> tuple[str, ...]:
    """Return the benign prompts of the preset of this name; empty if there is no such preset."""
    return load_preset(name).benign if name in preset_names() else ()


def load_concepts(path: Path | str) -> tuple[Concept, ...]:
    """Read the concepts of a user's TOML or JSON file; image folders are relative to it."""
    path = Path(path)
    data = _parsed(path)
    entries = data.get("concepts", [data]) if isinstance(data, dict) else data
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: `concepts` is empty or not a list of tables")
    return tuple(
        _concept(entry, path, f"{path}, concept {number}" if len(entries) > 1 else str(path))
        for number, entry in enumerate(entries, start=1)
    )


@cache
def _retain_lines() -> tuple[str, ...]:
    text = (_FOLDER / "retain_prompts.txt").read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def retain_prompts(n: int | None = None, seed: int = 0) -> tuple[str, ...]:
    """Return the first n shipped benign prompts in an order that depends on the seed."""
    lines = list(_retain_lines())
    if n is not None and not 0 < n <= len(lines):
        raise DataError(f"{n} retain prompts asked for; {len(lines)} are shipped")
    random.Random(seed).shuffle(lines)
    return tuple(lines[:n])


def _concept(entry: Any, path: Path, where: str) -> Concept:
    entry = _checked(entry, where)
    folder = entry.get("images")
    try:
        return Concept(
            entry["name"],
            tuple(entry.get("prompts", ())),
            entry.get("anchor", ""),
            ImageSet(folder=str(path.parent / folder)) if folder else None,
            float(entry.get("weight", 1.0)),
        )
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from error


def _checked(entry: Any, where: str) -> dict[str, Any]:
    """Check that the fields of a concept are known and of their types; return them."""
    if not isinstance(entry, dict):
        raise DataError(f"{where}: is {entry!r}, not a table of fields")
    for field, value in entry.items():
        if field not in _FIELDS:
            raise DataError(f"{where}: has no field {field!r}; fields are {', '.join(_FIELDS)}")
        if field in _TEXTS and not isinstance(value, str):
            raise DataError(f"{where}: {field} is {value!r}, not a text")
        if field in _LISTS and not (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            raise DataError(f"{where}: {field} is not a list of texts")
        if field == "weight" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise DataError(f"{where}: weight is {value!r}, not a number")
    if "name" not in entry:
        raise DataError(f"{where}: `name` is missing")
    return entry


def _parsed(path: Path) -> Any:
    try:
        text = read_text(path)
        return json_text.loads(text) if path.suffix.lower() == ".json" else loads(text)
    except (json_text.JsonError, TOMLDecodeError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise DataError(f"{path}: is not valid {kind} ({error})") from error
