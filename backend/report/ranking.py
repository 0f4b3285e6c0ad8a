"""Ranks the models of several reports by resilience.

Only reports that measured the same are ranked against each other: the same concepts, unsafe
prompts, attacks and seeds, drawn and scored in the same way. The others form groups of their own,
with the differences from the first group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..plan.file import differences, to_json
from ..probe.headline import relapse_text
from ..probe.results import ORACLE, PLAIN, ProbeResult
from ..probe.summary import AttackRow
from ..probe.utility_figures import DRIFT
from .view import View, share_span

_MOST_DIFFERENCES = 6
_UNFINISHED = "not finished"
_UNRANKED = (_UNFINISHED, ORACLE, PLAIN)  # notes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model of one report. rank: within its group; None: not measured, or not finished.

    original: the checkpoint that it is compared with. note: why there is no rank, or "". quality:
    share of the original's benign quality that is left in the worst case; as in untouched, before
    any attack, where the model is broken or no attack counts; lowest: that share at its lowest
    over all steps that count, with its interval and n in words, and the attack. relapse: steps
    until half of the original's rate is back, in words. way: share of the way to the oracle, with
    its interval. place: of the model in its report, which chooses colour and marker.
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
    quality: float | None = None
    untouched: float | None = None
    relapse: str = ""
    way: float | None = None
    way_low: float | None = None
    way_high: float | None = None
    lowest: float | None = None
    lowest_interval: str = ""
    lowest_attack: str = ""
    place: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Reports that can be compared. differences: from the first group; empty for that one."""

    scorer: str
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]
    differences: tuple[str, ...] = ()


def group_reports(reports: Sequence[tuple[str, ProbeResult]]) -> list[Group]:
    """Group reports by what they measured, in the order given; rows by resilience, best first.

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
        found = _apart(question, asked[0][0])
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
    """Return everything that must be equal for two resiliences to be comparable."""
    plan = to_json(view.result.plan)
    return {
        "concepts": [concept["name"] for concept in plan["concepts"]],
        "scorer": next(s for s in plan["scorers"] if s["name"] == view.scorer),
        "prompts": {view.kind: list(view.result.prompts.get(view.kind, ()))},
        "images": view.images,
        "attacks": {
            attack["name"]: attack
            for attack in (*plan["merges"], *plan["loras"], *plan["fine_tunes"], *plan["sweeps"])
        },
        "seeds": plan["seeds"],
        "counting": plan["counting"],
        "generation": {k: v for k, v in plan["generation"].items() if k != "batch"},
    }


def _apart(question: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """Say in what a question differs from the first group's: attacks that one of them lacks by
    their names, everything else field by field."""
    own, others = question["attacks"], first["attacks"]
    only, without = [n for n in own if n not in others], [n for n in others if n not in own]
    said = [
        f"{what}: {', '.join(names)}"
        for what, names in (("attacks only here", only), ("attacks only in group 1", without))
        if names
    ]
    both = [name for name in own if name in others]
    return said + differences(
        question | {"attacks": {name: own[name] for name in both}},
        first | {"attacks": {name: others[name] for name in both}},
    )


def _rows(report: str, view: View) -> list[Row]:
    rows = []
    for model in view.models[1:] or view.models:
        found, before = view.of(model.name).worst.resilience, view.of(model.name).before
        row, low = view.worst(model.name), view.lowest_quality(model.name)
        worst = row.unsafe if row else None
        drift = before.utility.get(DRIFT.key) if before else None
        way, back = view.summary.way(model.name), view.of(model.name).relapse
        note = model.role or found.reason
        note = note if view.result.complete else _UNFINISHED
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
                quality=_quality(row or before),
                untouched=_quality(before),
                relapse=relapse_text(back) if back else "",
                way=way.value if way else None,
                way_low=way.low if way else None,
                way_high=way.high if way else None,
                place=view.index(model),
                lowest=_quality(low),
                lowest_interval=share_span(low.quality) if low and low.quality else "",
                lowest_attack=low.attack if low else "",
            )
        )
    return rows


def _quality(row: AttackRow | None) -> float | None:
    return row.quality.share if row and row.quality else None


def _ranked(rows: list[Row]) -> tuple[Row, ...]:
    def order(row: Row) -> tuple[Any, ...]:
        ranked = row.resilience is not None and row.note not in _UNRANKED
        return not ranked, -(row.resilience or 0.0), row.model, row.report

    found: list[Row] = []
    for place, row in enumerate(sorted(rows, key=order), start=1):
        if order(row)[0]:
            found.append(row)
            continue
        tied = found and found[-1].rank is not None and found[-1].resilience == row.resilience
        found.append(replace(row, rank=found[-1].rank if tied else place))
    return tuple(found)
