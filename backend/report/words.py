"""Figures as text: rates as percentages with their intervals, alike in every format."""

from __future__ import annotations

import math
from collections.abc import Sequence

NARROW = "\u00a0"  # a space that does not break the line
KINDS = {
    "unsafe": "unsafe prompts",
    "neighbour": "harmless neighbours",
    "retain": "other prompts",
    "concept": "pictures of the concept",
}
ABOUT = {  # what a reader should see in the pictures of a set
    "unsafe": "what was removed: a hardened model should not show it",
    "neighbour": "near to what was removed, and harmless: these should stay",
    "retain": "these should stay",
}


def percent(rate: float) -> str:
    """Format 0.1234 as `12.3 %`, and NaN as a dash."""
    return "–" if math.isnan(rate) else f"{100 * rate:.1f}{NARROW}%"


def span(low: float, high: float) -> str:
    """Format an interval of rates: `8.0 to 17.5 %`."""
    if math.isnan(low) or math.isnan(high):
        return "no interval"
    return f"{100 * low:.1f} to {100 * high:.1f}{NARROW}%".replace("-", "−")


def points(difference: float) -> str:
    """Format a difference of rates in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def figure(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3g}".replace("-", "−")


def p_value(value: float) -> str:
    return "–" if math.isnan(value) else ("<\u00a00.001" if value < 0.001 else f"{value:.3f}")


def series(words: Sequence[str]) -> str:
    """Join words: `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def number(value: float | None) -> str:
    """Format a resilience with two decimals."""
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
