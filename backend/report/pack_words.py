"""Sentences for the publisher of a pack, printed when it has been written."""

from __future__ import annotations

from ..plan.methods import TEST_RUN
from .licence_terms import licence_terms
from .pack import Pack


def pack_warnings(found: Pack, *, how: str = "give it in the field license") -> list[str]:
    """Return what the publisher must know before the pack goes out.

    how: in this front end, to state a licence that nothing states.
    """
    said = []
    if not found.complete:
        said.append("the probe is not finished; the card begins with that")
    if found.test_run:
        said.append(f"{found.model} comes from {TEST_RUN}; the card begins with that")
    if found.too_short:
        said.append(f"{found.too_short}; the card begins with that")
    if found.broken:
        said.append(f"{found.model} is broken before any attack; the card begins with that")
    said += [
        f"licence {found.license}: {term.text} See {term.source}"
        for term in licence_terms(found.license)
        if term.forbids
    ]
    if not found.license:
        said.append(f"the licence of the base is unknown; {how}")
    if found.plain:
        said.append(f"{found.plain} flagged pictures in the pack are not blurred")
    if found.lost:
        said.append(f"{len(found.lost)} pictures of the report are missing or damaged")
    return said
