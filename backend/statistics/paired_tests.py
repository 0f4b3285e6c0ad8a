"""Tests and intervals of the difference of two rates on the same images.

Flags are one per image; image i of one sample is the pair of image i of the other (same prompt,
same seed). Everything that takes `clusters` treats the images of one prompt as one observation.
Results are seeded, in float64, and the same on every machine; every interval is a 95 % interval.
No interval covers prompts or attacks that were not tried.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from .clusters import (
    CELLS,
    RESAMPLES,
    TAILS,
    few,
    number_clusters,
    require_same_length,
    resample_sums,
    sum_clusters,
)
from .intervals import newcombe

_FLIPS = 9999  # of a sign-flip test; its smallest p-value is 1 / 10 000


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """Two rates on the same images. difference: first minus second, with interval [low, high].

    only_first, only_second: the discordant pairs. p_value: two-sided, of no difference.
    method: `mcnemar` (exact; interval by Newcombe) or `clusters` (signs of whole prompts
    flipped; interval by a bootstrap over prompts, or by Newcombe with as many pairs as
    prompts where few images are flagged or few are not).
    """

    difference: float
    low: float
    high: float
    p_value: float
    pairs: int
    only_first: int
    only_second: int
    clusters: int
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its interval [low, high], computed from `n` values in `clusters` clusters."""

    value: float
    low: float
    high: float
    n: int
    clusters: int


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """Exact McNemar test, and Newcombe's interval of the difference of the two rates.

    The p-value is a two-sided binomial test of the discordant pairs (McNemar, Psychometrika 12
    (1947), 153-157, in its exact form). The pairs must be independent: one image per prompt; for
    more use :func:`paired_clusters`.
    """
    from scipy.stats import binomtest

    both, only_first, only_second, neither = _count_pairs(first, second)
    total = len(first)
    low, high = newcombe(both, only_first, only_second, neither)
    discordant = only_first + only_second
    return PairedTest(
        difference=(only_first - only_second) / total,
        low=low,
        high=high,
        p_value=float(binomtest(only_first, discordant).pvalue) if discordant else 1.0,
        pairs=total,
        only_first=only_first,
        only_second=only_second,
        clusters=total,
        method="mcnemar",
    )


def paired_clusters(
    first: Sequence[bool],
    second: Sequence[bool],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
) -> PairedTest:
    """Compare two rates with several images per prompt; with one each, this is :func:`mcnemar`.

    The test flips the signs of whole prompts' differences (a permutation test with 9999 flips:
    no p-value is below 0.0001). The interval is that of :func:`paired_bootstrap`; if one of the
    rates is of fewer than `FEW` images flagged or not flagged, or no more pairs than that differ
    from the rest, Newcombe's interval of as many pairs as there are prompts.

    Args:
        clusters: [n], the prompt of each pair.
    """
    if len(set(clusters)) == len(first):
        return mcnemar(first, second)
    both, only_first, only_second, neither = _count_pairs(first, second)
    interval = paired_bootstrap(
        [float(flag) for flag in first], [float(flag) for flag in second], clusters, seed=seed
    )
    low, high = interval.low, interval.high
    unequal = len(first) - max(only_first, only_second, both + neither)
    rates = (both + only_first, both + only_second, unequal)
    if low == high or any(few(count, len(first)) for count in rates):
        share = interval.clusters / len(first)
        low, high = newcombe(*(count * share for count in (both, only_first, only_second, neither)))
    return PairedTest(
        difference=interval.value,
        low=low,
        high=high,
        p_value=_sign_flip_p_value(first, second, clusters, seed),
        pairs=len(first),
        only_first=only_first,
        only_second=only_second,
        clusters=interval.clusters,
        method="clusters",
    )


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of first minus mean of second, with a percentile interval over resampled clusters.

    A sample without any variation has an interval of width 0, which means nothing.

    Args:
        clusters: [n], the prompt of each value; None: each value is its own cluster.
    """
    import numpy as np

    require_same_length(first, second)
    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    groups = np.arange(len(gaps)) if clusters is None else number_clusters(clusters)
    require_same_length(first, groups)
    sums = sum_clusters(np.stack([gaps, np.ones_like(gaps)], axis=1), groups)
    drawn = resample_sums(sums, resamples, seed)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], TAILS)
    return Estimate(
        value=float(gaps.mean()), low=float(low), high=float(high), n=len(gaps), clusters=len(sums)
    )


def _sign_flip_p_value(
    first: Sequence[bool], second: Sequence[bool], clusters: Sequence[Hashable], seed: int
) -> float:
    """Two-sided p-value: the share of sign flips that reach the observed sum of differences.

    Own code where `scipy.stats.permutation_test` would give other p-values for the same probe:
    see docs/decisions/0005.
    """
    import numpy as np

    gaps = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    sums = sum_clusters(gaps[:, None], number_clusters(clusters))[:, 0]
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    reached = 1  # the observed signs are one of the flips
    for start, rows in _chunks(_FLIPS, len(sums)):
        random = np.random.default_rng([seed, start, rows])
        signs = random.integers(2, size=(rows, len(sums))) * 2 - 1
        reached += int((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).sum())
    return reached / (_FLIPS + 1)


def _chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Split a table of `rows` into parts of bounded size: start and length of each."""
    size = max(1, CELLS // max(columns, 1))
    return ((start, min(size, rows - start)) for start in range(0, rows, size))


def _count_pairs(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, int, int]:
    """Count pairs flagged in both, in the first only, in the second only, in neither."""
    require_same_length(first, second)
    pairs = [(bool(a), bool(b)) for a, b in zip(first, second, strict=True)]
    if not pairs:
        raise ValueError("no pairs to compare")
    cells = ((True, True), (True, False), (False, True), (False, False))
    both, only_first, only_second, neither = (pairs.count(cell) for cell in cells)
    return both, only_first, only_second, neither
