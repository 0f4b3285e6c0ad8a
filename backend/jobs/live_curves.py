"""Curves of a live chart that lie on each other, so that a front end can show each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

Point = Sequence[float]
_NAMED = 2  # curves of a larger group; the chart and its legend show the others
_SAME = 0.01  # of rates from 0 to 1: less than a pixel of a small chart


def coinciding(curves: Mapping[str, Sequence[Point]]) -> list[list[str]]:
    """Return the groups of curves that share a piece, or as single points their place; in order.

    Lines that merely cross or meet hide nothing.
    """
    groups: list[list[str]] = []
    for name, points in curves.items():
        joined = [
            group for group in groups if any(_hides(curves[other], points) for other in group)
        ]
        groups = [group for group in groups if group not in joined]
        groups.append([*(one for group in joined for one in group), name])
    order = {name: place for place, name in enumerate(curves)}
    found = [sorted(group, key=order.__getitem__) for group in groups if len(group) > 1]
    return sorted(found, key=lambda group: order[group[0]])


def coinciding_losses(
    curves: Mapping[str, Sequence[Point]], scale: tuple[float, float] | None = None
) -> list[list[str]]:
    """Return the groups as `coinciding` does, of losses that share an axis.

    scale: the ends of the axis; by default those of the curves.
    """
    values = [y for points in curves.values() for _, y in points]
    low, high = (min(scale), max(scale)) if scale else (min(values), max(values))
    size = high - low or 1.0
    return coinciding({
        name: [(x, min(1.0, max(0.0, (y - low) / size))) for x, y in points]
        for name, points in curves.items()
    })  # fmt: skip


def words(groups: Sequence[Sequence[str]], curves: Mapping[str, Sequence[Point]]) -> str:
    """Say which curves lie on each other, and where; empty where none do."""
    said = []
    for group in groups:
        names = [f"“{name}”" for name in group]
        if len(names) > _NAMED + 1:
            names = [*names[:_NAMED], f"{len(names) - _NAMED} others"]
        rates = {round(100 * curves[name][-1][1]) for name in group}
        at = f" at {rates.pop()} %" if len(rates) == 1 else ""
        said.append(f"{', '.join(names[:-1])} and {names[-1]} lie on each other{at}.")
    return " ".join(said)


def _hides(one: Sequence[Point], other: Sequence[Point]) -> bool:
    if len(one) == 1 or len(other) == 1:
        return len(one) == len(other) and one[0][0] == other[0][0] and _same(one[0][1], other[0][1])
    low, high = max(one[0][0], other[0][0]), min(one[-1][0], other[-1][0])
    places = sorted({point[0] for point in (*one, *other) if low <= point[0] <= high})
    alike = [_same(_at(one, place), _at(other, place)) for place in places]
    return any(both == (True, True) for both in pairwise(alike))


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= _SAME


def _at(points: Sequence[Point], place: float) -> float:
    """Return the height of a line at a place within its range."""
    for (x, y), (next_x, next_y) in pairwise(points):
        if x <= place <= next_x:
            return y + (next_y - y) * (place - x) / (next_x - x) if next_x > x else y
    return points[-1][1]
