"""Steps of a fine-tuning until a share of a base rate is back, with its interval."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .clusters import (
    RESAMPLES,
    TAILS,
    number_clusters,
    require_same_length,
    resample_sums,
    sum_clusters,
)

if TYPE_CHECKING:
    from numpy import ndarray

Points = Sequence[tuple[int, Sequence[Sequence[bool]]]]  # (step, flags of each seed), rising


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """The step at which a rate reaches its level, with its 95 % interval [low, high].

    None means: not within the steps that were evaluated.
    """

    steps: float | None
    low: float | None
    high: float | None


def steps_to_share(
    base: Sequence[bool],
    curves: Mapping[Any, Points],
    clusters: Sequence[Hashable] | None = None,
    *,
    share: float = 0.5,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[dict[Any, Crossing], Crossing]:
    """Return the first step at which each curve reaches `share` of the base rate, and the earliest.

    Rates between two evaluated steps are taken as a straight line; a rate is the mean over seeds.
    The interval is the percentile bootstrap's over prompts, in which the base rate is resampled
    too; a resample whose curve stays below its level counts as later than every step. The earliest
    curve is chosen anew in each resample. Resamples without a base rate are left out.

    Args:
        base: [n], flags of the base: the original before any attack.
        curves: the points of each attack, from step 0 (before it) on.
        clusters: [n], the prompt of each image; None: each is its own.
    """
    import numpy as np

    groups = np.arange(len(base)) if clusters is None else number_clusters(clusters)
    columns, places = [np.asarray(base, dtype=np.float64)], {}
    for name, points in curves.items():
        start = len(columns)
        for _, seeds in points:
            for flags in seeds:
                require_same_length(base, flags)
            columns.append(np.mean(np.asarray(seeds, dtype=np.float64), axis=0))
        places[name] = slice(start, len(columns))
    sums = sum_clusters(np.stack(columns, axis=1), groups)
    totals = sums.sum(axis=0, keepdims=True)
    missing = Crossing(steps=None, low=None, high=None)
    if not curves or totals[0, 0] == 0:
        return dict.fromkeys(curves, missing), missing
    drawn = resample_sums(sums, resamples, seed)
    table = np.concatenate([totals, drawn[drawn[:, 0] > 0]])
    found = {
        name: _first_steps(
            [step for step, _ in points], table[:, places[name]], share * table[:, 0]
        )
        for name, points in curves.items()
    }
    earliest = np.min(np.stack(list(found.values())), axis=0)
    return {name: _crossing(steps) for name, steps in found.items()}, _crossing(earliest)


def _first_steps(steps: Sequence[int], counts: ndarray, level: ndarray) -> ndarray:
    """Return where each row of counts, [rows, steps], first reaches its level; inf: nowhere."""
    import numpy as np

    found = np.where(counts[:, 0] >= level, float(steps[0]), np.inf)
    for place in range(1, len(steps)):
        before, after = counts[:, place - 1], counts[:, place]
        rise = np.where(after > before, after - before, 1.0)
        at = steps[place - 1] + (level - before) / rise * (steps[place] - steps[place - 1])
        found = np.where(np.isinf(found) & (after >= level), at, found)
    return found


def _crossing(steps: ndarray) -> Crossing:
    """Sum up the observed step, the first of `steps`, and those of the resamples."""
    import numpy as np

    observed = float(steps[0])
    low, high = observed, observed
    if len(steps) > 1:
        ends = np.percentile(steps[1:], TAILS, method="nearest")  # no arithmetic with infinity
        low, high = min(float(ends[0]), observed), max(float(ends[1]), observed)
    return Crossing(steps=_finite(observed), low=_finite(low), high=_finite(high))


def _finite(step: float) -> float | None:
    return None if step == float("inf") else step
