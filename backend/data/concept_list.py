"""Concepts as a front end lets people write them: a shipped category, lines of prompts, or both."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import ConfigError
from ..plan.concept import Concept, shown_name
from ..plan.images import ImageSet
from .concept import load_preset, preset_called, preset_names
from .text import lines_of

NONE = "none"  # instead of a preset
_NAME = 60  # characters of a first prompt that become a name
_IN_A_NAME = 40  # characters of the concepts in the name of a run


def read_concepts(
    preset: str,
    name: str,
    prompts: str,
    *,
    strength: float = 1.0,
    anchor: str = "",
    images: ImageSet | None = None,
) -> tuple[Concept, ...]:
    """Content of one concept list: a preset, prompts below `# name` lines, or both.

    Images can only belong to one concept. name: of the first; strength: of each.
    """
    first, *further = sections(prompts)
    lines = first[1]
    if preset == NONE and not lines and further:  # all the text stands below a `# name`
        (header, lines), *further = further
        meant = "" if lines else preset_called(header)
        preset, name = meant or preset, name.strip() or meant or header
    if preset == NONE and not lines and images is None:
        raise ConfigError(
            "no concept is given: choose a preset (nudity, for one), or write a prompt, or give "
            "images of the concept"
        )
    if images is not None and further:
        raise ConfigError(
            "images belong to one concept, and the prompts name several: give each of these a "
            "concept list of its own, or leave the images out"
        )
    own = load_preset(preset) if preset != NONE else None
    every = tuple(dict.fromkeys((*(own.prompts if own else ()), *lines)))
    called = name.strip() or (own.name if own else every[0][:_NAME] if every else "images")
    kept = anchor.strip()
    found = [Concept(called, every, kept or (own.anchor if own else ""), images, strength)]
    for header, texts in further:
        shipped = load_preset(header) if not texts and preset_called(header) else None
        if not texts and shipped is None:
            raise ConfigError(
                f"concept {header}: write at least one prompt below `# {header}`; only names of "
                f"presets ({', '.join(map(shown_name, preset_names()))}) need no prompts"
            )
        becomes = kept or (shipped.anchor if shipped else "")
        asked = shipped.prompts if shipped else texts
        called = shipped.name if shipped else header
        found.append(Concept(called, asked, becomes, None, strength))
    return joined((), tuple(found))


def sections(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the lines below each `# name`; the first entry, without a name, has those above."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in (line.strip() for line in lines_of(text)):
        if line.startswith("#"):
            header = line.lstrip("#").strip()
            if not header:
                raise ConfigError("concepts: a line has a # without a name after it; name it")
            found.append((header, []))
        elif line:
            found[-1][1].append(line)
    return [(header, tuple(dict.fromkeys(lines))) for header, lines in found]


def read_strengths(line: str, names: Iterable[str]) -> dict[str, float]:
    """Read `weapons: 2, hate symbols: 0.5`: numbers by the names of concepts, in any spelling.

    names: of the concepts that are chosen.
    """
    known = {shown_name(name).lower(): name for name in names}
    found = {}
    for part in filter(None, (part.strip() for part in re.split(r"[,\n]", line))):
        text, colon, value = (piece.strip() for piece in part.rpartition(":"))
        name = known.get(shown_name(text).lower())
        if not colon or name is None:
            raise ConfigError(
                f"strengths: {part[:80]!r} is not `name: number` with the name of a chosen "
                f"concept ({', '.join(map(shown_name, known.values()))})"
            )
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"strengths: {value[:40]!r} of {text} is not a number") from None
    return found


def in_a_name(concepts: Iterable[Concept]) -> str:
    """Return the concepts as the name of a run or probe begins: `hate symbols+weapons`."""
    parts = (re.sub(r"[^\w-]+", " ", shown_name(concept.name)).strip() for concept in concepts)
    return "+".join(parts)[:_IN_A_NAME].strip("+ ")


def joined(before: tuple[Concept, ...], own: tuple[Concept, ...]) -> tuple[Concept, ...]:
    """Return both lists joined; raise if a name occurs twice."""
    every = (*before, *own)
    names = [concept.name for concept in every]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two concepts are called {name!r}: remove one, or give it another `name`"
            )
    return every
