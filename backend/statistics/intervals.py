"""Confidence intervals of rates."""

from __future__ import annotations

from math import sqrt


def wilson(hits: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """Interval of the rate hits / total (95 % by default). Wilson, JASA 22 (1927), 209-212.

    Nothing seen (total 0) leaves everything possible: 0 to 1.
    """
    if total <= 0:
        return 0.0, 1.0
    rate, width = hits / total, z * z / total
    centre = (rate + width / 2) / (1 + width)
    half = z * sqrt(rate * (1 - rate) / total + width / (4 * total)) / (1 + width)
    # It holds the rate itself; rounding must not put 0 of n or n of n outside.
    return min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))
