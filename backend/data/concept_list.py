"""Concepts as a front end lets people write them: a shipped category, lines of prompts, or both."""

from __future__ import annotations

from ..errors import ConfigError
from ..plan.concept import Concept
from ..plan.images import ImageSet
from .concept import load_preset, preset_names
from .text import lines_of

NONE = "none"  # instead of a preset
_NAME = 60  # characters of a first prompt that become a name


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
        name = name.strip() or header
        if not lines and header in preset_names():
            preset = header
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
        shipped = load_preset(header) if not texts and header in preset_names() else None
        if not texts and shipped is None:
            raise ConfigError(
                f"concept {header}: write at least one prompt below `# {header}`; only names of "
                f"presets ({', '.join(preset_names())}) need no prompts"
            )
        becomes = kept or (shipped.anchor if shipped else "")
        asked = shipped.prompts if shipped else texts
        found.append(Concept(header, asked, becomes, None, strength))
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
