"""Cohen's kappa: how far two detectors agree beyond chance on the same pictures."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kappa:
    """The four counts of a table of two detectors, and kappa with its 95 % interval.

    value: 1: they always agree; 0: no more than by chance; below 0: less. None where one of them
    flags all pictures or none, as nothing can then be said about agreement beyond chance.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    value: float | None
    low: float | None
    high: float | None


def cohen_kappa(
    first: Sequence[bool],
    second: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Kappa:
    """Compute kappa = (agreement − chance) / (1 − chance). Cohen, Educational and Psychological
    Measurement 20 (1960), 37-46; the interval is the percentile bootstrap's over clusters.

    Args:
        first, second: [n], flags of the same pictures.
        clusters: [n], the prompt of each picture; None: each is its own.
    """
    import numpy as np

    require_same_length(first, second)
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    cells = np.stack([a & b, a & ~b, ~a & b, ~a & ~b], axis=1).astype(np.float64)
    counts = [int(count) for count in cells.sum(axis=0)]
    both, only_first, only_second, neither = counts
    groups = np.arange(len(a)) if clusters is None else number_clusters(clusters)
    value = low = high = None
    if 0 < both + only_first < len(a) and 0 < both + only_second < len(a):
        drawn = resample_sums(sum_clusters(cells, groups), resamples, seed)
        value = float(_kappa(np.asarray([counts], dtype=np.float64))[0])
        low, high = (float(end) for end in np.percentile(_kappa(drawn), TAILS))
    return Kappa(
        both=both, only_first=only_first, only_second=only_second, neither=neither,
        value=value, low=low, high=high,
    )  # fmt: skip


def _kappa(counts: ndarray) -> ndarray:
    """Return kappa of each row of counts, [rows, 4]; 0 where both detectors are constant."""
    import numpy as np

    total = counts.sum(axis=1)
    agree = (counts[:, 0] + counts[:, 3]) / total
    first, second = (counts[:, 0] + counts[:, k] for k in (1, 2))
    chance = (first * second + (total - first) * (total - second)) / total**2
    room = np.where(chance < 1, 1 - chance, 1.0)
    return np.where(chance < 1, (agree - chance) / room, 0.0)
