"""Resampling of whole clusters: the images of one prompt resemble one another, so a resample
draws prompts, not images (Davison & Hinkley, Bootstrap Methods and their Application, 1997,
section 3.8).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from .intervals import wilson

if TYPE_CHECKING:
    from numpy import ndarray

RESAMPLES = 2000
TAILS = (2.5, 97.5)  # percentiles that bound a 95 % interval
FEW = 5  # flagged images, or unflagged ones: with fewer, how prompts differ cannot be estimated
CELLS = 2_000_000  # of a table of resamples: bounds the memory to some tens of MB


def require_same_length(first: Any, second: Any) -> None:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")


def number_clusters(clusters: Sequence[Hashable]) -> ndarray:
    """The cluster of each value as a number from 0, in order of first appearance."""
    import numpy as np

    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[name] for name in clusters], dtype=np.int64)


def sum_clusters(columns: ndarray, groups: ndarray) -> ndarray:
    """Add up columns [n, k] by cluster: [clusters, k]."""
    import numpy as np

    return np.stack([np.bincount(groups, weights=column) for column in columns.T], axis=1)


def resample_sums(sums: ndarray, resamples: int, seed: int) -> ndarray:
    """Column totals of resamples with replacement, [resamples, k], of `sums`, [clusters, k].

    `scipy.stats.bootstrap` draws the clusters. Its own interval is of one figure; callers here
    need ratios and maxima of several columns of the same resample.
    """
    import numpy as np
    from scipy.stats import bootstrap

    count = len(sums)
    if count == 0:
        raise ValueError("no values to resample")
    if count == 1:  # every resample is the cluster itself; scipy refuses to draw
        return np.repeat(sums, resamples, axis=0)

    def totals(drawn: ndarray, axis: int) -> ndarray:
        rows = drawn.reshape(-1, count)
        offsets = np.arange(len(rows))[:, None] * count
        times = np.bincount((rows + offsets).ravel(), minlength=rows.size)
        return (times.reshape(rows.shape).astype(np.float64) @ sums).T

    found = bootstrap(
        (np.arange(count),), totals, n_resamples=resamples, batch=max(1, CELLS // count),
        vectorized=True, method="percentile",
        random_state=np.random.default_rng(seed),  # type: ignore[call-arg]  # `rng` from 1.15 on
    )  # fmt: skip
    return found.bootstrap_distribution.T


def few(hits: float, total: float) -> bool:
    """Return True if too few of `total` images are flagged, or are not, to see how prompts differ.

    Sums of floats stand a hair below whole numbers, hence the rounding.
    """
    return round(min(hits, total - hits), 6) < FEW


def effective_images(hits: ndarray, sizes: ndarray, rate: float) -> float:
    """Number of independent images with the information of these clusters ([clusters] each).

    Rate · (1 − rate) / variance over clusters, between the numbers of clusters and of images: Korn
    & Graubard, Survey Methodology 24 (1998), 193-201. With fewer than `FEW` images of one kind
    that variance is a matter of chance (one flagged image always looks independent), so each prompt
    counts once.
    """
    clusters, total = len(sizes), float(sizes.sum())
    if clusters < 2 or few(float(hits.sum()), total):
        return clusters
    variance = ((hits - rate * sizes) ** 2).sum() * clusters / (clusters - 1) / total**2
    return min(max(rate * (1 - rate) / float(variance), clusters), total) if variance else total


def clustered_wilson(hits: ndarray, sizes: ndarray) -> tuple[float, float, float]:
    """Wilson's interval of a rate over clusters ([clusters] each), and the n that it is of.

    From `FEW` images on, the n may jump from the prompts' number to the images'. So that one more
    flagged image never lowers an end there, the interval also holds the nearer end of the interval
    of `FEW` - 1 images flagged, or not flagged, with the prompts' number as n.
    """
    total, clusters = float(sizes.sum()), float(len(sizes))
    if total <= 0:
        return 0.0, 1.0, 0.0
    rate = float(hits.sum()) / total
    images = effective_images(hits, sizes, rate)
    low, high = wilson(rate * images, images)
    if not few(float(hits.sum()), total):
        share = (FEW - 1) / total
        high = max(high, wilson(share * clusters, clusters)[1])
        low = min(low, wilson((1 - share) * clusters, clusters)[0])
    return low, high, images
