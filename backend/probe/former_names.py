"""Attacks of presets that had another name in earlier versions: old probes resume and compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import RunError
from ..plan.attack import MergeAttack
from ..plan.probe import ProbePlan
from ..plan.probe_presets import MERGED
from .folder import PLAN, read_plan
from .results import ProbeResult

FORMER = {"half the original": MergeAttack(name=MERGED, weight=0.5)}


def as_stored(plan: ProbePlan, folder: Path) -> ProbePlan:
    """Return a plan with the former names that the probe of a folder began with, if it has one.

    So the command that began it continues it, and the results have one name each.
    """
    if not (folder / PLAN).is_file():
        return plan
    try:
        stored = {merge.name: merge for merge in read_plan(folder)[0].merges}
    except RunError:  # beginning the probe reports it
        return plan
    former = {now: old for old, now in FORMER.items() if stored.get(old) == replace(now, name=old)}
    merges = [replace(m, name=former[m]) if m in former else m for m in plan.merges]
    return replace(plan, merges=tuple(merges))


def with_present_names(result: ProbeResult) -> ProbeResult:
    """Return a result with the present names of its attacks, to compare it with newer ones."""
    former = {
        old: now for old, now in FORMER.items() if replace(now, name=old) in result.plan.merges
    }
    if not former:
        return result
    merges = [former.get(merge.name, merge) for merge in result.plan.merges]
    return replace(
        result,
        plan=replace(result.plan, merges=tuple(merges)),
        evaluations=tuple(
            replace(each, attack=former[each.attack].name) if each.attack in former else each
            for each in result.evaluations
        ),
    )
