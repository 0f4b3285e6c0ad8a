"""Figures in words: rates as percentages with their intervals, the same in every format."""

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
FIGURES = {
    "drift": ("prediction drift", "lower: closer to the original"),
    "image_distance": ("image distance", "lower: closer to the original"),
    "clip_score": ("CLIP score", "higher: fits the prompt better"),
    "fid": ("FID", "lower is better"),
    "kid": ("KID", "lower is better"),
}
_SHORT = {"unsafe": "unsafe", "neighbour": "neighbours", "retain": "others"}


def utility_name(key: str) -> tuple[str, str]:
    """What a figure of `Look.utility` is called, and how to read it ("" where unknown)."""
    for name, (words, reading) in FIGURES.items():
        if key == name:
            return words, reading
        kind = key.removeprefix(name + "_")
        if kind in _SHORT:
            return f"{words}, {_SHORT[kind]}", reading
    return key.replace("_", " "), ""


def percent(rate: float) -> str:
    """0.1234 as `12.3 %`; a rate that is not there as a dash."""
    return "–" if math.isnan(rate) else f"{100 * rate:.1f}{NARROW}%"


def span(low: float, high: float) -> str:
    """An interval of rates: `8.0 to 17.5 %`."""
    if math.isnan(low) or math.isnan(high):
        return "no interval"
    return f"{100 * low:.1f} to {100 * high:.1f}{NARROW}%".replace("-", "−")


def points(difference: float) -> str:
    """A difference of rates in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def figure(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3g}".replace("-", "−")


def p_value(value: float) -> str:
    return "–" if math.isnan(value) else ("< 0.001" if value < 0.001 else f"{value:.3f}")


def series(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def markdown(text: str) -> str:
    """Somebody's words on one line of Markdown, without markup of their own."""
    text = " ".join(text.split())
    for mark in "\\`*_|<>[]#":
        text = text.replace(mark, "\\" + mark)
    return text


def number(value: float | None) -> str:
    """A resilience, to two places."""
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
