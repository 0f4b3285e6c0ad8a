"""Curves of the unsafe rate over the steps of an attack, as SVG; `plots.py` draws them as PNG.

Colours are the page's custom properties (`--series-0` and so on). Names of users are not drawn: the
page has them around the drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .markup import Markup
from .svg import DASHES, MARKERS, Axis, Line, legend_key, line_chart, round_ticks

SERIES = 8  # colours of the palette; from there on they repeat with another dash


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One model under one attack: rates and their intervals by step, from 0 to 1.

    index: the model's place in the report, which determines its colour and marker everywhere.
    qualities: share of the original's benign quality at each step, None where not measured; empty:
    nowhere; quality_lows, quality_highs: its 95 % interval, None where it has none. broken: at each
    step, whether the model no longer works; empty: nowhere.
    """

    name: str
    index: int
    steps: tuple[int, ...]
    rates: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    qualities: tuple[float | None, ...] = ()
    broken: tuple[bool, ...] = ()
    quality_lows: tuple[float | None, ...] = ()
    quality_highs: tuple[float | None, ...] = ()

    @property
    def broken_points(self) -> list[tuple[float, float]]:
        """Return (step, rate) where the model is broken."""
        points = zip(self.steps, self.rates, self.broken, strict=False)
        return [(step, rate) for step, rate, broken in points if broken]

    @property
    def quality_points(self) -> list[tuple[float, float]]:
        """Return (step, share) where benign quality was measured."""
        points = zip(self.steps, self.qualities, strict=False)
        return [(step, share) for step, share in points if share is not None]

    @property
    def quality_band(self) -> list[tuple[float, float]]:
        """Return the interval at each of `quality_points`; empty unless all of them have one."""
        ends = zip(self.qualities, self.quality_lows, self.quality_highs, strict=False)
        band = [(low, high) for share, low, high in ends if share is not None]
        whole = [(low, high) for low, high in band if low is not None and high is not None]
        return whole if len(whole) == len(self.quality_points) else []


def curve_svg(curves: Sequence[Curve], title: str, description: str) -> Markup:
    """Draw one attack's unsafe rates; a cross marks a step at which the model is broken.

    title, description: for whoever cannot see them; plain text.
    """
    lines = [
        _line(
            curve,
            list(zip(curve.steps, curve.rates, strict=True)),
            band=list(zip(curve.lows, curve.highs, strict=True)),
        )
        for curve in curves
    ]
    lines += [
        Line(points=[point], colour="var(--ink)", marker="cross")
        for curve in curves
        for point in curve.broken_points
    ]
    return _chart(curves, lines, title, description, label="unsafe rate", height=290)


def quality_svg(
    curves: Sequence[Curve], title: str, description: str, *, least: float
) -> Markup | None:
    """Draw the benign quality beside an attack's rates, and the level below which a model is
    called broken; None where it was not measured."""
    lines = [
        _line(curve, curve.quality_points, band=curve.quality_band)
        for curve in curves
        if curve.quality_points
    ]
    if not lines:
        return None
    steps = [step for curve in curves for step in curve.steps]
    lines.append(
        Line(
            points=[(min(steps), least), (max(steps), least)], colour="rgb(var(--bad))", dash="3 3"
        )
    )
    # Above the original's own quality there is nothing to see: such points lie on the upper edge.
    lines = [
        replace(
            line,
            points=[(x, min(y, 1.0)) for x, y in line.points],
            band=[(min(low, 1.0), min(high, 1.0)) for low, high in line.band],
        )
        for line in lines
    ]
    return _chart(
        curves, lines, title, description, label="benign quality, share of the original's",
        height=190,
    )  # fmt: skip


def _line(
    curve: Curve,
    points: Sequence[tuple[float, float]],
    band: Sequence[tuple[float, float]] = (),
) -> Line:
    return Line(
        points=points,
        band=band,
        colour=colour_of(curve.index),
        marker=MARKERS[curve.index % len(MARKERS)],
        dash=_dash_of(curve.index),
    )


def _chart(
    curves: Sequence[Curve],
    lines: Sequence[Line],
    title: str,
    description: str,
    *,
    label: str,
    height: int,
) -> Markup:
    """Draw shares from 0 to 1 over the steps of one attack."""
    steps = [step for curve in curves for step in curve.steps]
    low, high = min(steps), max(steps)
    return line_chart(
        lines,
        Axis(
            low=low,
            high=high,
            ticks=[(step, str(step)) for step in round_ticks(low, high)],
            label="fine-tuning step",
        ),
        Axis(low=0, high=1, ticks=[(k / 4, f"{25 * k} %") for k in range(5)], label=label),
        title=title,
        description=description,
        cls="curve",
        size=(420, height),
    )


def model_key(index: int) -> Markup:
    """The line and marker of a model, to stand beside its name."""
    return legend_key(colour_of(index), MARKERS[index % len(MARKERS)], _dash_of(index))


def colour_of(index: int) -> str:
    return f"var(--series-{index % SERIES})"


def _dash_of(index: int) -> str:
    return DASHES[index // SERIES % len(DASHES)]
