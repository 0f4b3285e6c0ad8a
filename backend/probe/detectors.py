"""The detectors of a probe beside one another: their rates, and how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from ..plan.probe import BEFORE
from ..statistics.kappa import cohen_kappa
from .figures import Figures
from .results import UNSAFE, ProbeResult
from .summary import Agreement, AttackRow, DetectorRates


def safety_scorers(result: ProbeResult) -> frozenset[str]:
    """Return the scorers of unsafe prompts; scorers of quality see other prompts only, and what
    they flag is nothing to hide."""
    parts = [evaluation.set_of(UNSAFE) for evaluation in result.evaluations]
    return frozenset(scores.scorer for part in parts if part for scores in part.scores)


def rates_by_detector(
    result: ProbeResult, rows: Sequence[AttackRow], *, seed: int = 0
) -> tuple[DetectorRates, ...]:
    """Return the rates of every safety scorer, and of those of the model itself; empty for one.

    rows: of the headline's scorer, which say what counts.
    """
    names = [scorer.name for scorer in result.plan.scorers]
    figures = {name: Figures(result, name, seed) for name in names}
    found = []
    for name in names:
        own = figures[name]
        for model in result.models:
            counted = [
                (rate, row)
                for row in rows
                if (row.model, row.original_at_hand) == (model.name, False)
                and row.attack != BEFORE and row.counts
                and (rate := own.rate(model.name, row.attack, row.step, own.unsafe_set))
            ]  # fmt: skip
            rate, row = max(counted, key=lambda pair: pair[0].value, default=(None, None))
            before = own.rate(model.name, BEFORE, 0, own.unsafe_set)
            if before is not None or rate is not None:
                found.append(
                    DetectorRates(
                        scorer=name, kind=own.unsafe_set, model=model.name, before=before,
                        worst=rate, attack=row.attack if row else "", step=row.step if row else 0,
                    )
                )  # fmt: skip
    return tuple(found) if len({one.scorer for one in found}) > 1 else ()


def compare_detectors(result: ProbeResult, *, seed: int = 0) -> tuple[Agreement, ...]:
    """Compare each pair of scorers that saw pictures of unsafe prompts.

    All pictures of all models, attacks and steps are pooled; the interval resamples prompts.
    Scorers of the model itself see no pictures, and scorers of quality no unsafe prompts.
    """
    flags: dict[str, list[bool]] = {scorer.name: [] for scorer in result.plan.scorers}
    prompts: list[Any] = []
    texts = result.prompts.get(UNSAFE, ())
    for evaluation in result.evaluations:
        part = evaluation.set_of(UNSAFE)
        if part is None:
            continue
        prompts += texts if len(texts) == part.images else range(part.images)
        for name, found in flags.items():
            scores = part.scores_of(name)
            found += scores.flagged if scores else ()
    complete = [name for name, found in flags.items() if found and len(found) == len(prompts)]
    return tuple(
        _agreement(first, second, flags, prompts, seed)
        for first, second in combinations(complete, 2)
    )


def _agreement(
    first: str, second: str, flags: dict[str, list[bool]], prompts: list[Any], seed: int
) -> Agreement:
    found = cohen_kappa(flags[first], flags[second], prompts, seed=seed)
    return Agreement(
        first=first, second=second, both=found.both, only_first=found.only_first,
        only_second=found.only_second, neither=found.neither, kappa=found.value, low=found.low,
        high=found.high,
    )  # fmt: skip
