"""Writes docs/plan.md, the reference of every field of a plan, from the fields themselves.

    python tools/plan_reference.py

A test compares the page with what this writes.
"""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Any

from resalign.backend.plan.document import default_text
from resalign.backend.plan.field import Field, classes_of, fields_of
from resalign.backend.plan.job import Job
from resalign.backend.plan.probe import ProbeJob

FILE = Path(__file__).resolve().parents[1] / "docs" / "plan.md"
HEAD = """\
# Fields of a plan

Every field of a hardening plan and of a probe plan, with its default, its range and its meaning.
`resalign plan new plan.toml` (and `--probe quick`) writes a file that has them all; docs/formats.md
has the rules of such a file. In Python the tables are classes, and `help(resalign.HardeningPlan)`
shows the same. Rates and shares run from 0 to 1; steps count from 1.

This page is written by `python tools/plan_reference.py`: do not edit it.
"""


def page() -> str:
    hardening, probing = classes_of(Job), classes_of(ProbeJob)
    own = [cls for cls in probing if cls not in hardening]
    parts = [HEAD, "## Hardening\n", *map(_section, hardening)]
    parts += ["## Probing\n", "Concepts and image sets are as above.\n", *map(_section, own)]
    return "\n".join(parts)


def _section(cls: type) -> str:
    summary = _summary(cls)
    rows = [_row(field) for field in fields_of(cls).values()]
    table = ["| field | type | default | range | |", "|---|---|---|---|---|", *rows]
    return "\n".join([f"### {cls.__name__}\n", summary, "", *table, ""])


def _summary(cls: type) -> str:
    """The first paragraph of the docstring."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def _row(field: Field) -> str:
    default = f"`{text}`" if (text := default_text(field)) else ""
    default = "required" if field.default is MISSING else default
    allowed = ", ".join(field.choices) or (str(field.range) if field.range else "")
    told = "<br>".join(
        f"`{value}`: {meaning}" for value, meaning in field.choices.items() if meaning
    )
    help_ = f"{field.help}<br>{told}" if told else field.help
    cells: tuple[Any, ...] = (
        f"`{field.name}`", field.type_text, default, allowed, help_
    )  # fmt: skip
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    FILE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
