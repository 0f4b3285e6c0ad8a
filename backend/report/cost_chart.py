"""Durability against cost: a point per model, for the page that compares methods.

Cost is what hardening took from the model before any attack: the benign quality that it lost, as a
share of the original's. Durability is the resilience, and where the probe had an oracle the share
of the way to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .curves import MARKERS, colour_of, model_key
from .markup import Child, Markup, tag
from .ranking import Row
from .svg import Axis, Line, line_chart
from .words import number, percent

Figure = tuple[float | None, float | None, float | None]  # value, low, high
_LEAST = 0.1  # of the cost axis


def cost_charts(rows: Sequence[Row]) -> Markup | None:
    """Draw the models of one group whose cost and durability were both measured."""
    charts = [
        _chart(rows, "Resilience", "resilience",
               lambda row: (row.resilience, row.low, row.high)),
        _chart(rows, "Way to the oracle", "share of the way to the oracle",
               lambda row: (row.way, row.way_low, row.way_high)),
    ]  # fmt: skip
    drawn = [chart for chart in charts if chart is not None]
    if not drawn:
        return None
    legend = [
        tag("li", model_key(index), f"{row.model} ({row.report})")
        for index, row in zip(_looks(rows), rows, strict=True) if _cost(row) is not None
    ]  # fmt: skip
    return tag(
        "div",
        tag("h3", "Durability against cost"),
        tag("p", "Up is more durable, left is cheaper. Vertical lines are 95 % intervals; models "
            "whose intervals overlap cannot be told apart."),
        tag("ul", legend, cls="legend"),
        tag("div", drawn, cls="multiples"),
    )  # fmt: skip


def _chart(
    rows: Sequence[Row], title: str, label: str, of: Callable[[Row], Figure]
) -> Markup | None:
    points = [
        (row.model, index, cost, *of(row))
        for index, row in zip(_looks(rows), rows, strict=True)
        if (cost := _cost(row)) is not None and of(row)[0] is not None
    ]
    if not points:
        return None
    values = [end for _, _, _, *ends in points for end in ends if end is not None]
    lowest, most = min(0.0, *values), max(_LEAST, *(cost for _, _, cost, *_ in points))
    lowest = max(lowest, -1.0)
    highest = max(1.0, math.ceil(4 * max(values)) / 4)
    lines = []
    for _, index, cost, value, low, high in points:
        colour = colour_of(index)
        if low is not None and high is not None:
            ends = [(cost, max(low, lowest)), (cost, high)]
            lines.append(Line(points=ends, colour=colour))
        marker = MARKERS[index % len(MARKERS)]
        lines.append(Line(points=[(cost, max(value or 0.0, lowest))], colour=colour, marker=marker))
    told = " ".join(
        f"{model}: {number(value)} at a cost of {percent(cost)}."
        for model, _, cost, value, *_ in points
    )
    ticks = [k / 4 for k in range(-4, math.floor(4 * highest) + 1) if lowest <= k / 4]
    drawn = line_chart(
        lines,
        Axis(low=0, high=most, ticks=[(most * k / 4, f"{100 * most * k / 4:.3g} %")
                                      for k in range(5)],
             label="benign quality lost before any attack"),
        Axis(low=lowest, high=highest, ticks=[(tick, number(tick)) for tick in ticks], label=label),
        title=f"{title} against cost", description=told, cls="curve", size=(420, 290),
    )  # fmt: skip
    parts: list[Child] = [tag("figcaption", title), drawn]
    return tag("figure", parts)


def _looks(rows: Sequence[Row]) -> list[int]:
    """Number each row's colour and marker: those of its report, while no other row has them.

    A model of another report at the same place gets the next that no place has.
    """
    free, taken, found = max((row.place for row in rows), default=0) + 1, set[int](), []
    for row in rows:
        place = row.place
        if place in taken:
            place, free = free, free + 1
        taken.add(place)
        found.append(place)
    return found


def _cost(row: Row) -> float | None:
    return None if row.untouched is None else max(0.0, 1 - row.untouched)
