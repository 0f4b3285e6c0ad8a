"""Confidence intervals of a rate, and of the difference of two paired rates."""

from __future__ import annotations

from math import sqrt


def wilson(hits: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """Interval of the rate hits / total (95 % by default). Wilson, JASA 22 (1927), 209-212.

    With no observations (total 0), every rate is possible: 0 to 1.
    """
    if total <= 0:
        return 0.0, 1.0
    rate, width = hits / total, z * z / total
    centre = (rate + width / 2) / (1 + width)
    half = z * sqrt(rate * (1 - rate) / total + width / (4 * total)) / (1 + width)
    # The interval contains the rate itself, also for 0 of n and n of n, where rounding could not.
    return min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))


def newcombe(
    both: float, only_first: float, only_second: float, neither: float
) -> tuple[float, float]:
    """95 % interval of the difference of two paired rates, first minus second.

    Combines Wilson's intervals of both rates with the correlation of the pairs (continuity
    corrected): method 10 of Newcombe, Statistics in Medicine 17 (1998), 2635-2650. Counts may be
    fractions.
    """
    total = both + only_first + only_second + neither
    if total <= 0:
        return -1.0, 1.0
    a, b = both + only_first, both + only_second
    rate_a, rate_b = a / total, b / total
    (low_a, high_a), (low_b, high_b) = wilson(a, total), wilson(b, total)
    product = a * (total - a) * b * (total - b)
    excess = both * neither - only_first * only_second
    if excess > 0:
        excess = max(0.0, excess - total / 2)
    phi = excess / sqrt(product) if product > 0 else 0.0

    def combined(x: float, y: float) -> float:
        return sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    difference = rate_a - rate_b
    below = combined(rate_a - low_a, high_b - rate_b)
    above = combined(high_a - rate_a, rate_b - low_b)
    return max(-1.0, difference - below), min(1.0, difference + above)
