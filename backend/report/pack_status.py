"""Signature, file, licence and seeds behind the figures of a pack: the first block of its card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markdown_text import code_text

UNSIGNED = "Every figure is the submitter's statement"
NOT_GIVEN = (
    "the file itself was not given to `resalign pack`: nothing ties these figures to it "
    "(`resalign pack --checkpoint FILE` does)"
)


def status_block(
    *,
    signed: bool,
    released: Mapping[str, Any] | None,
    license: str,  # noqa: A002
    seeds: int,
) -> str:
    """Return the block as a list. seeds: of fine-tuning. license: of the base, "" if unknown."""
    lines = [
        f"**Signature:** {_signature(signed)}",
        f"**Published file:** {_file(released)}.",
        f"**Licence of the base:** {_licence(license)}.",
        f"**Seeds of fine-tuning:** {seeds}{_seeds(seeds)}.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _signature(signed: bool) -> str:
    if signed:
        return (
            "signed by the publisher (`model.sig`). Checked with the publisher's public key, that "
            "shows who stated these figures, not that they are right."
        )
    return f"not signed (`resalign pack --sign KEY` signs). {UNSIGNED}; nobody else checked it."


def _file(released: Mapping[str, Any] | None) -> str:
    if not released:
        return NOT_GIVEN
    name, measured = code_text(released["file"]), released["measured"]
    if measured:
        return (
            f"`{name}` was given, and its SHA-256 was checked: it is that of the file that the "
            "report says was measured"
        )
    if measured is None:
        return (
            f"`{name}` was given, and its SHA-256 is below; the report recorded none, so nothing "
            "ties these figures to it"
        )
    return (
        f"`{name}` was given, and its SHA-256 was checked: it is **not** that of the file that was "
        "measured (`resalign verify` compares the weights)"
    )


def _licence(license: str) -> str:  # noqa: A002
    if license:
        return f"`{code_text(license)}`, as the publisher or the file's header states it"
    return "**unknown** (`resalign pack --license ID` states it)"


def _seeds(seeds: int) -> str:
    return "; one run does not show how much another would differ" if seeds == 1 else ""
