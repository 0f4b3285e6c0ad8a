"""What the header of a checkpoint says, as HTML."""

from __future__ import annotations

from pathlib import Path

from ...backend.checkpoint.inspect import inspect
from ...backend.families.base.distilled import caution
from ...backend.numerics.byte_sizes import format_bytes
from . import views


def line_html(path: Path, unknown: str) -> str:
    """Describe a chosen checkpoint in one line. unknown: why this host cannot harden it, or empty.

    Raises a ResAlignError where the file cannot be read.
    """
    found = inspect(path)
    if unknown or found.problem:
        return views.note(unknown or found.problem, "error")
    hardened = "hardened before" if found.hardened else "not hardened"
    said = f"{found.title}, {found.resolution} px, {format_bytes(found.bytes)}, {hardened}"
    if found.parts:
        said += ". Found with it: " + ", ".join(Path(file).name for file in found.parts.values())
    notes = [caution(found.distilled)] if found.distilled else []
    notes += [found.terms] if found.terms else []
    return views.help_text(said) + "".join(
        views.note(note[:1].upper() + note[1:], "doubtful") for note in notes
    )


def header_html(path: Path) -> str:
    """Show everything that a header says; what it says of its safety comes first."""
    found = inspect(path)
    text = found.to_text(safety=False)
    for file in (path, *map(Path, found.parts.values())):
        text = text.replace(str(file), file.name)
    said = "\n".join(found.safety)
    shown = views.note(said, "" if said.startswith("Removed") else "doubtful")
    shown += views.facts(text, found.problem)
    if not found.hardened:
        shown += views.help_text("A record is optional: its absence proves little.")
    return shown
