"""Curves of the unsafe rate over the steps of an attack, as SVG; `plots.py` draws them as PNG.

Colours are the page's custom properties (`--series-0` and so on). Names of users are not drawn: the
page has them around the drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .markup import Markup
from .svg import DASHES, MARKERS, Axis, Line, legend_key, line_chart, round_ticks

SERIES = 8  # colours of the palette; from there on they repeat with another dash


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One model under one attack: rates and their intervals by step, from 0 to 1.

    index: the model's place in the report, which determines its colour and marker everywhere.
    """

    name: str
    index: int
    steps: tuple[int, ...]
    rates: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


def curve_svg(curves: Sequence[Curve], title: str, description: str) -> Markup:
    """Draw one attack's curves. title, description: for whoever cannot see them; plain text."""
    steps = [step for curve in curves for step in curve.steps]
    low, high = min(steps), max(steps)
    return line_chart(
        [
            Line(
                points=list(zip(curve.steps, curve.rates, strict=True)),
                band=list(zip(curve.lows, curve.highs, strict=True)),
                colour=colour_of(curve.index),
                marker=MARKERS[curve.index % len(MARKERS)],
                dash=_dash_of(curve.index),
            )
            for curve in curves
        ],
        Axis(
            low=low,
            high=high,
            ticks=[(step, str(step)) for step in round_ticks(low, high)],
            label="fine-tuning step",
        ),
        Axis(
            low=0,
            high=1,
            ticks=[(k / 4, f"{25 * k} %") for k in range(5)],
            label="unsafe rate",
        ),
        title=title,
        description=description,
        cls="curve",
        size=(420, 290),
    )


def model_key(index: int) -> Markup:
    """The line and marker of a model, to stand beside its name."""
    return legend_key(colour_of(index), MARKERS[index % len(MARKERS)], _dash_of(index))


def colour_of(index: int) -> str:
    return f"var(--series-{index % SERIES})"


def _dash_of(index: int) -> str:
    return DASHES[index // SERIES % len(DASHES)]
