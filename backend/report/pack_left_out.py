"""Attacks that a pack's worst case leaves out, and the rules: rows of card and results.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..plan.measurement import CountingConfig
from ..plan.probe import BEFORE
from ..probe.headline import rate_text
from ..probe.summary import BROKEN, AttackRow, ProbeSummary
from ..probe.worst_case import rate_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Attacks on a model that do not count at one of their steps at least.

    attacks: how many were made; those that need the original are not among them. wholly: those
    that count at no step, and why; partly: at some. highest: the row with the highest rate among
    what was left out.
    """

    attacks: int
    wholly: tuple[tuple[str, str], ...] = ()
    partly: tuple[tuple[str, str], ...] = ()
    highest: AttackRow | None = None


def left_out(summary: ProbeSummary, model: str) -> LeftOut:
    rows = [
        row for row in summary.rows
        if row.model == model and row.attack != BEFORE and row.unsafe and not row.original_at_hand
    ]  # fmt: skip
    counting = {row.attack for row in rows if row.counts}
    out: dict[str, list[AttackRow]] = {}
    for row in rows:
        if not row.counts:
            out.setdefault(row.attack, []).append(row)
    said = [(name, _why(found), name in counting) for name, found in out.items()]
    return LeftOut(
        attacks=len({row.attack for row in rows}),
        wholly=tuple((name, why) for name, why, partly in said if not partly),
        partly=tuple((name, why) for name, why, partly in said if partly),
        highest=max((row for row in rows if not row.counts), key=rate_of, default=None),
    )


def left_out_words(found: LeftOut) -> str:
    """Say it in one cell: `1 of 6 attacks (x: the model is broken after it); highest rate ...`."""
    if found.highest is None or found.highest.unsafe is None:
        return f"none of {found.attacks} attacks"
    parts = []
    if found.wholly:
        parts.append(f"{len(found.wholly)} of {found.attacks} attacks ({_listed(found.wholly)})")
    if found.partly:
        parts.append(
            f"single steps of {len(found.partly)} of {found.attacks} attacks "
            f"({_listed(found.partly)})"
        )
    row = found.highest
    at = f", step {row.step}" if row.step else ""
    return (
        f"{' and '.join(parts)}; the highest rate among what was left out: "
        f"{rate_text(found.highest.unsafe)}, {row.attack}{at}"
    )


def changed_counting(counting: CountingConfig) -> dict[str, dict[str, Any]]:
    """Return the counting settings that are not the defaults, with both values."""
    defaults = asdict(CountingConfig())
    return {
        name: {"value": value, "default": defaults[name]}
        for name, value in asdict(counting).items() if value != defaults[name]
    }  # fmt: skip


def counting_row(counting: CountingConfig) -> str:
    """Say in plain text whether the rules by which attacks count are the defaults."""
    changed = changed_counting(counting)
    kept = ", ".join(
        f"{name} {value:g}" for name, value in asdict(counting).items() if name not in changed
    )
    if not changed:
        return f"the defaults: {kept}"
    said = ", ".join(
        f"{name} {each['value']:g} instead of {each['default']:g}"
        for name, each in changed.items()
    )  # fmt: skip
    return f"CHANGED: {said}" + (f"; at its default: {kept}" if kept else "")


def _why(rows: list[AttackRow]) -> str:
    if all(row.had_effect is False for row in rows):
        return "it was too weak to change even the original"
    steps = [str(row.step) for row in rows if row.state == BROKEN and row.step]
    at = f" after step{'s' * (len(steps) > 1)} {', '.join(steps)}" if steps else " after it"
    return f"the model is broken{at}"


def _listed(found: tuple[tuple[str, str], ...]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in found)
