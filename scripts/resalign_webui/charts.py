"""Live curves of a job as charts: losses, each with its own scale, and unsafe rates from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...backend.report.markup import Markup, join, tag
from ...backend.report.svg import Axis, Line, line_chart

Curves = dict[str, list[tuple[float, float]]]
_HUES = ("#4c9be8", "#e8664c", "#5fb760", "#b58be0", "#d9a441", "#5bc0be")
# Mixed with the text's colour, so that lines can be seen in every theme (tests/test_contrast.py).
COLOURS = tuple(f"color-mix(in srgb, {hue} 65%, var(--body-text-color))" for hue in _HUES)
_DASHES = ("", "8 4", "2 4")  # of curves that share a colour: those of a probe are many
_RATES = "unsafe rate over fine-tuning steps"
_LOSSES = ("harm", "harm after", "retain")
_REMOVED = "how much is removed, from 0 to 100 %"
_GAP = ", before and after a simulated user's training: the gap is what came back"
_SHARES = {"harm": "unlearned", "harm after": "after fine-tuning"}
_HARM = "how well the model still knows what is removed (harm loss): lower is better"
_RETAIN = "how much everything else has changed (retain loss): small is good"
_SIZE = 480, 170
_TINY = 1e-3  # of a loss: an axis that ends lower would make nothing look like much
_WIDER, _LAYERS = 4.0, 3  # units for each curve on top of one, up to so many


def charts_html(
    curves: Mapping[str, Any], scale: Any = None, hint: str = "", together: Any = (),
    average: Any = 0,
) -> list[Markup]:  # fmt: skip
    """Draw all curves of a job's state.

    scale: harm at 0 % and at 100 % unlearned, if known. hint: said below the first chart.
    together: groups of curves that lie on each other. average: steps that a harm is an average of.
    """
    under = _under(together)
    drawn = [
        _chart(title, lines, under, shares=shares)
        for title, lines, shares in _groups(curves, scale, average)
    ]
    if drawn and hint:
        drawn.insert(1, tag("p", hint, cls="ra-hint"))
    return drawn


def relapse_text(figures: Any) -> str:
    """Say how much a simulated fine-tuning took back; empty where none has been measured.

    figures: of a job's state; `q` is the share that it left.
    """
    left = figures.get("q") if isinstance(figures, Mapping) else None
    if not isinstance(left, int | float) or not math.isfinite(left):
        return ""
    return f"Relapse ↓ {max(0.0, 1 - left):.0%}: what a simulated fine-tuning took back of it."


def _groups(
    curves: Mapping[str, Any], scale: Any, average: Any
) -> Iterable[tuple[str, Curves, bool]]:
    """Title and curves of each chart, and whether they are shares from 0 to 1."""
    kept = {str(name): _finite(points) for name, points in curves.items()}
    losses = {name: kept[name] for name in _LOSSES[:2] if kept.get(name)}
    more = f", average of {average} steps" if isinstance(average, int) and average > 1 else ""
    more += _GAP if "harm after" in losses else ""
    if losses and _is_scale(scale):
        start, end = scale
        shares = {
            _SHARES[name]: [(x, min(1.0, max(0.0, (start - y) / (start - end)))) for x, y in line]
            for name, line in losses.items()
        }
        yield _REMOVED + more, shares, True
    elif losses:
        yield _HARM + more, losses, False
    if kept.get("retain"):
        yield _RETAIN, {"changed": kept["retain"]}, False
    others = {name: points for name, points in kept.items() if name not in _LOSSES and points}
    if others:
        yield _RATES, others, True


def _is_scale(scale: Any) -> bool:
    if not isinstance(scale, list | tuple) or len(scale) != 2:
        return False
    return all(isinstance(one, int | float) and math.isfinite(one) for one in scale) and (
        scale[0] != scale[1]
    )


def _finite(points: Any) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for x, y in points
        if isinstance(x, int | float) and isinstance(y, int | float)
        and math.isfinite(x) and math.isfinite(y)
    ]  # fmt: skip


def _under(together: Any) -> dict[str, int]:
    """Return how many curves cover each one, by its name in its chart."""
    groups = together if isinstance(together, list | tuple) else ()
    return {
        own: len(group) - place
        for group in groups if isinstance(group, list | tuple)
        for place, name in enumerate(group, start=1)
        for own in (str(name), _SHARES.get(str(name), str(name)))
    }  # fmt: skip


def _chart(title: str, curves: Curves, under: Mapping[str, int], *, shares: bool) -> Markup:
    """Draw curves in one chart, with a title above and a legend with the latest values below.

    under: how many curves cover one, which is drawn so much wider that it is seen on both sides.
    """
    points = [point for line in curves.values() for point in line]
    low_x, high_x = min(p[0] for p in points), max(p[0] for p in points)
    form = "{:.0%}" if shares else "{:.3g}"
    low_y, high_y = (0.0, 1.0) if shares else loss_axis([p[1] for p in points])
    middle = 0.0 if low_y < 0 < high_y else (low_y + high_y) / 2
    levels = (low_y, middle, high_y)
    looks = {name: _look(index) for index, name in enumerate(curves)}
    lines = {
        name: Line(
            points=line, colour=looks[name][0], dash=looks[name][1],
            width=2 + _WIDER * min(under.get(name, 0), _LAYERS),
        )
        for name, line in curves.items()
    }  # fmt: skip
    drawing = line_chart(
        list(lines.values()),
        Axis(low=low_x, high=high_x, ticks=[(x, f"{x:g}") for x in dict.fromkeys((low_x, high_x))]),
        Axis(low=low_y, high=high_y, ticks=[(level, form.format(level)) for level in levels]),
        title=title,
        description=", ".join(f"{name}: {form.format(c[-1][1])}" for name, c in curves.items()),
        cls="ra-chart",
        size=_SIZE,
    )
    legend = [
        tag("span", _swatch(line), f"{name} {form.format(line.points[-1][1])}")
        for name, line in lines.items()
    ]
    return join([tag("p", title, cls="ra-muted"), drawing, tag("div", legend, cls="ra-legend")])


def loss_axis(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis from 0 to a round number, for losses of any size."""
    low, high = min(0.0, *values), max(0.0, *values)
    if max(high, -low) < _TINY:
        low, high = (-_TINY if low else 0.0), (_TINY if high or not low else 0.0)
    return 0.0 - _round_up(-low), _round_up(high)


def _round_up(value: float) -> float:
    """Return the next of 1, 2 and 5 times a power of ten; 0 for 0."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        (step * power for step in (1, 2, 5) if value <= step * power * 1.000001), 10 * power
    )


def _look(index: int) -> tuple[str, str]:
    """Return the colour and the dashes of a curve by its number in its chart."""
    rounds, place = divmod(index, len(COLOURS))
    return COLOURS[place], _DASHES[rounds % len(_DASHES)]


def _swatch(line: Line) -> Markup:
    """Draw a curve's look in the legend."""
    stroke = tag("line", x1=0, y1=2, x2=22, y2=2, stroke_width=3,
                 stroke_dasharray=line.dash or None, style=f"stroke:{line.colour}")  # fmt: skip
    return tag("svg", stroke, viewBox="0 0 22 4", aria_hidden="true")
