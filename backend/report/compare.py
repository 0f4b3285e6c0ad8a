"""Several reports side by side: a leaderboard by resilience.

Only reports that asked the same are ranked against each other: the same concepts, unsafe prompts,
attacks and seeds, drawn and scored in the same way. The others stand in groups of their own, with
what sets them apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..plan.file import differences, to_json
from ..probe.results import ProbeResult
from ..run.json_lines import finite
from .build import write_text
from .markdown import table as markdown_table
from .markup import Child, Markup, join, table, tag
from .page import page, theme_button
from .schema import load_report
from .view import View
from .words import figure, markdown, number, percent, span

_MOST_DIFFERENCES = 6
_UNFINISHED = "not finished"
_NOTE = (
    "Resilience is 1 − worst unsafe rate after attacks / the original's rate before any: 1 is "
    "nothing came back, 0 is as unsafe as the original; attacks that need the original itself "
    "do not count. Rows whose intervals overlap are not told apart by these measurements, "
    "whatever their rank."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model of one report. rank: within its group; None: not measured, or not finished.

    original: the checkpoint that it is compared with. note: why there is no rank, or "".
    """

    rank: int | None
    model: str
    report: str
    original: str
    resilience: float | None
    low: float | None
    high: float | None
    before: float | None
    worst: float | None
    worst_low: float | None
    worst_high: float | None
    worst_attack: str
    images: int
    drift: float | None
    sha256: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Reports that can be compared. differences: from the first group; empty for that one."""

    scorer: str
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]
    differences: tuple[str, ...] = ()


def compare_reports(paths: Sequence[Path | str], folder: Path | str) -> Path:
    """Write `leaderboard.html`, `.md` and `.json` into a folder; returns the page's path.

    Args:
        paths: `report.json` files, or the folders that hold them.

    Raises:
        ConfigError: no report was given, or one twice.
        RunError: a file that is no report.
        ExportError: the folder cannot be written to.
    """
    files = [Path(path) / "report.json" if Path(path).is_dir() else Path(path) for path in paths]
    if not files:
        raise ConfigError("compare: give at least one report.json")
    if len({file.resolve() for file in files}) < len(files):
        raise ConfigError("compare: a report is given twice")
    names = _names(files)
    groups = groups_of([(name, load_report(file)) for name, file in zip(names, files, strict=True)])
    folder = Path(folder)
    record = {"schema": 1, "kind": "resalign leaderboard", "groups": [asdict(g) for g in groups]}
    texts = {
        "leaderboard.json": json.dumps(finite(record), ensure_ascii=False, indent=2) + "\n",
        "leaderboard.md": _markdown(groups),
        "leaderboard.html": _html(groups),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return folder / "leaderboard.html"


def groups_of(reports: Sequence[tuple[str, ProbeResult]]) -> list[Group]:
    """Reports by what they asked, in the order given; rows sorted by resilience, best first.

    reports: (name, result) of each.
    """
    asked: list[tuple[dict[str, Any], list[tuple[str, View]]]] = []
    for name, result in reports:
        view = View(result)
        question = _question(view)
        for other, members in asked:
            if other == question:
                members.append((name, view))
                break
        else:
            asked.append((question, [(name, view)]))
    groups = []
    for question, members in asked:
        found = differences(question, asked[0][0])
        if len(found) > _MOST_DIFFERENCES:
            rest = len(found) - _MOST_DIFFERENCES
            found = [*found[:_MOST_DIFFERENCES], f"and {rest} more"]
        groups.append(
            Group(
                scorer=members[0][1].scorer,
                attacks=members[0][1].attacks,
                rows=_ranked([row for name, view in members for row in _rows(name, view)]),
                differences=tuple(found),
            )
        )
    return groups


def _question(view: View) -> dict[str, Any]:
    """All that must be equal for two resiliences to mean the same."""
    plan = to_json(view.result.plan)
    return {
        "concepts": [concept["name"] for concept in plan["concepts"]],
        "scorer": next(s for s in plan["scorers"] if s["name"] == view.scorer),
        "prompts": {view.kind: list(view.result.prompts.get(view.kind, ()))},
        "images": view.images,
        "attacks": {
            attack["name"]: attack
            for attack in (*plan["merges"], *plan["loras"], *plan["fine_tunes"])
        },
        "seeds": plan["seeds"],
        "generation": {k: v for k, v in plan["generation"].items() if k != "batch"},
    }


def _rows(report: str, view: View) -> list[Row]:
    rows = []
    for model in view.models[1:] or view.models:
        found, before = view.of(model.name).worst.resilience, view.of(model.name).before
        row = view.worst(model.name)
        worst = row.unsafe if row else None
        drift = before.utility.get("drift") if before else None
        note = found.reason if view.result.complete else _UNFINISHED
        rows.append(
            Row(
                rank=None,
                model=model.name,
                report=report,
                original=view.original.source or view.original.name,
                resilience=found.value,
                low=found.low,
                high=found.high,
                before=before.unsafe.value if before and before.unsafe else None,
                worst=worst.value if worst else None,
                worst_low=worst.low if worst else None,
                worst_high=worst.high if worst else None,
                worst_attack=row.attack if row else "",
                images=worst.images if worst else 0,
                drift=None if drift is None or math.isnan(drift) else drift,
                sha256=model.sha256,
                note=note,
            )
        )
    return rows


def _ranked(rows: list[Row]) -> tuple[Row, ...]:
    def order(row: Row) -> tuple[Any, ...]:
        ranked = row.resilience is not None and row.note != _UNFINISHED
        return not ranked, -(row.resilience or 0.0), row.model, row.report

    found: list[Row] = []
    for place, row in enumerate(sorted(rows, key=order), start=1):
        if order(row)[0]:
            found.append(row)
            continue
        tied = found and found[-1].rank is not None and found[-1].resilience == row.resilience
        found.append(replace(row, rank=found[-1].rank if tied else place))
    return tuple(found)


def _names(files: Sequence[Path]) -> list[str]:
    """A short name for each report: its folder's, with a number where two are alike."""
    names: list[str] = []
    for file in files:
        name = file.resolve().parent.name if file.stem == "report" else file.stem
        taken = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({taken + 1})" if taken else name)
    return names


_HEADS = (
    "rank",
    "model",
    "resilience",
    "worst unsafe rate",
    "before",
    "drift",
    "report",
    "original",
)


def _cells(row: Row) -> list[list[str]]:
    """Each cell as a figure and what stands under it."""
    known = row.low is not None and row.high is not None
    interval = f"{number(row.low)} to {number(row.high)}" if known else "no interval"
    worst = "–" if row.worst is None else percent(row.worst)
    wide = span(row.worst_low, row.worst_high) if row.worst_low is not None else ""  # type: ignore[arg-type]
    before = "–" if row.before is None else percent(row.before)
    return [
        ["–" if row.rank is None else str(row.rank)],
        [row.model, row.note],
        [number(row.resilience), interval],
        [worst, f"{wide}; n = {row.images}", row.worst_attack],
        [before],
        [figure(row.drift)],
        [row.report],
        [row.original],
    ]


def _markdown(groups: Sequence[Group]) -> str:
    parts = ["# Leaderboard of resilience", _NOTE]
    for place, group in enumerate(groups, start=1):
        parts.append(f"## {_title(place, groups)}")
        parts += [markdown(text) for text in _introduction(place, group)]
        parts += ["\n".join(f"- {markdown(text)}" for text in group.differences)] * bool(
            group.differences
        )
        rows = [
            [markdown(cell[0]) + (f" ({markdown('; '.join(filter(None, cell[1:])))})"
                                  if any(cell[1:]) else "") for cell in _cells(row)]
            for row in group.rows
        ]  # fmt: skip
        parts.append(markdown_table(_HEADS, rows))
    return "\n\n".join(parts) + "\n"


def _html(groups: Sequence[Group]) -> str:
    sections = []
    for place, group in enumerate(groups, start=1):
        rows = [[_cell(cell) for cell in _cells(row)] for row in group.rows]
        apart = tag("ul", [tag("li", text) for text in group.differences])
        sections.append(
            tag(
                "section",
                tag("h2", _title(place, groups)),
                [tag("p", text) for text in _introduction(place, group)],
                apart if group.differences else None,
                table(_HEADS, rows, caption="Best first, with 95 % intervals", cls="board"),
            )
        )
    head = tag(
        "header",
        tag("div", tag("p", "Resilience probes"), theme_button(), cls="bar"),
        tag("h1", "Leaderboard of resilience"),
        tag("p", _NOTE),
    )
    return page("Leaderboard of resilience", [head, tag("main", sections), tag("footer")])


def _cell(parts: list[str]) -> Markup:
    first, *others = parts
    small: list[Child] = [tag("small", text) for text in others if text]
    return tag("td", first, small) if small else join([first])


def _title(place: int, groups: Sequence[Group]) -> str:
    return "All reports" if len(groups) == 1 else f"Group {place} of {len(groups)}"


def _introduction(place: int, group: Group) -> list[str]:
    count = len(group.attacks)
    said = [f"Scored by “{group.scorer}”, under {count} attack{'s' * (count != 1)}: "
            f"{', '.join(group.attacks)}."]  # fmt: skip
    if place > 1:
        said.append("Not ranked against group 1, as these asked something else:")
    return said
