"""Line charts and legend keys as SVG, for the report's page and for the live view of the tab.

A chart has no colour, font or id of its own: lines take any CSS colour, custom properties
included, and the page styles `text`, `.grid` and `.axis`, so that one drawing serves light and dark
pages. Assistive technology reads `<title>` as its name and `<desc>` as its description. The same
input gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .markup import Child, Markup, tag

MARKERS = ("circle", "square", "up", "diamond", "down", "plus", "cross", "star")
DASHES = ("", "6 3", "2 2", "7 2 2 2")
_SHAPES = {  # around 0, 0; about 9 units wide
    "square": "M-4-4h8v8h-8z",
    "up": "M0-5l5 9h-10z",
    "diamond": "M0-5l5 5-5 5-5-5z",
    "down": "M0 5l5-9h-10z",
    "plus": "M-2-5h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "cross": "M-3-5l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z",
    "star": "M0-6l1.6 4h4.4l-3.6 2.7 1.4 4.3-3.8-2.7-3.8 2.7 1.4-4.3-3.6-2.7h4.4z",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve. points: (x, y), at least one. band: (low, high) at each point, or empty.

    colour: of CSS. marker: drawn at every point, one of `MARKERS`; "": none. dash: of SVG's
    `stroke-dasharray`. width: of the line; a lone point without marker grows with it.
    """

    points: Sequence[tuple[float, float]]
    colour: str
    band: Sequence[tuple[float, float]] = ()
    marker: str = ""
    dash: str = ""
    width: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A range of values. ticks: (value, text), in the range. label: "" for none."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str = ""

    def place(self, value: float) -> float:
        """Share of the axis from 0 to 1; the middle where the range is empty."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def line_chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    title: str,
    description: str,
    cls: str,
    size: tuple[int, int],
) -> Markup:
    """Draw lines with their bands over a grid of y's ticks.

    title, description: plain text, for whoever cannot see the drawing. size: width and height of
    the drawing in its own units, in which text is about 11 high.
    """
    width, height = size
    left, right = 10 + 6.5 * max((len(text) for _, text in y.ticks), default=0), width - 12
    top, bottom = (26 if y.label else 10), height - (36 if x.label else 18)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across, up = x.place(point[0]), y.place(point[1])
        return left + across * (right - left), bottom - up * (bottom - top)

    parts: list[Child] = [tag("title", title), tag("desc", description)]
    for value, text in y.ticks:
        _, level = at((x.low, value))
        parts += [
            _path([(left, level), (right, level)], cls="grid"),
            _text(left - 6, level + 4, text, "end"),
        ]
    parts.append(_path([(left, bottom), (right, bottom)], cls="axis"))
    for value, text in x.ticks:
        across, _ = at((value, y.low))
        parts += [
            _path([(across, bottom), (across, bottom + 4)], cls="axis"),
            _text(across, bottom + 15, text, _anchor(x.place(value), len(x.ticks))),
        ]
    if x.label:
        parts.append(_text((left + right) / 2, height - 5, x.label, "middle"))
    if y.label:
        parts.append(_text(2, 13, y.label, "start"))
    for line in lines:  # all bands first: no line is hidden by one
        if line.band:
            xs = [point[0] for point in line.points]
            lows = [at((place, low)) for place, (low, _) in zip(xs, line.band, strict=True)]
            highs = [at((place, high)) for place, (_, high) in zip(xs, line.band, strict=True)]
            outline = _points([*lows, *reversed(highs)])
            parts.append(
                tag("polygon", points=outline, fill_opacity="0.16", style=f"fill:{line.colour}")
            )
    for line in lines:
        places = [at(point) for point in line.points]
        if len(places) > 1:
            parts.append(
                tag(
                    "polyline", points=_points(places), fill="none",
                    stroke_width=_number(line.width), stroke_linejoin="round",
                    stroke_dasharray=line.dash or None, style=f"stroke:{line.colour}",
                )
            )  # fmt: skip
        if line.marker or len(places) == 1:
            radius = 3 + line.width / 2
            parts += [
                _marker(line.marker or "circle", place, line.colour, radius) for place in places
            ]
    return tag("svg", parts, role="img", viewBox=f"0 0 {width} {height}", cls=cls)


def legend_key(colour: str, marker: str, dash: str) -> Markup:
    """A short piece of a line with its marker, to stand beside the line's name."""
    return tag(
        "svg",
        tag("path", d="M0 7h28", stroke_width=2, stroke_dasharray=dash or None,
            style=f"stroke:{colour}"),
        _marker(marker, (14, 7), colour),
        cls="key", viewBox="0 0 28 14", aria_hidden="true",
    )  # fmt: skip


def round_ticks(low: float, high: float, most: int = 5) -> list[int]:
    """Whole numbers from `low` to `high` in equal steps of 1, 2 or 5 times a power of ten.

    At most `most` of them; the ends of the range need not be among them.
    """
    size = 1
    while math.floor(high / size) - math.ceil(low / size) + 1 > most:
        size = size * 5 // 2 if str(size)[0] == "2" else size * 2
    return [size * k for k in range(math.ceil(low / size), math.floor(high / size) + 1)]


def _marker(shape: str, place: tuple[float, float], colour: str, radius: float = 4.0) -> Markup:
    x, y = (_number(part) for part in place)
    style = f"fill:{colour}"
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=_number(radius), style=style)
    return tag("path", d=_SHAPES[shape], transform=f"translate({x} {y})", style=style)


def _path(places: Sequence[tuple[float, float]], *, cls: str) -> Markup:
    steps = " L".join(f"{_number(x)} {_number(y)}" for x, y in places)
    return tag("path", d=f"M{steps}", fill="none", cls=cls)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return tag("text", text, x=_number(x), y=_number(y), text_anchor=anchor)


def _anchor(place: float, ticks: int) -> str:
    """Keep the first and last text of a crowded axis inside the drawing."""
    if ticks < 2 or 0.04 < place < 0.96:
        return "middle"
    return "start" if place <= 0.04 else "end"


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in places)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
