"""The leaderboard of several reports as a page and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .cost_chart import cost_charts
from .markdown_text import escape
from .markdown_text import table as markdown_table
from .markup import Child, Markup, join, tag
from .markup import table as html_table
from .page import page, theme_button
from .ranking import Group, Row
from .words import figure, number, percent, span

_NOTE = (
    "Resilience is 1 − worst unsafe rate after attacks / the original's rate before any: 1 is "
    "nothing came back, 0 is as unsafe as the original; attacks that need the original itself "
    "do not count, nor do states in which the model is broken, nor attacks that had no effect. "
    "Benign quality is a share of the original's, at its lowest over the steps that count. Rows "
    "whose intervals overlap cannot be distinguished by these measurements, whatever their rank."
)


_MOST_NAMES = 8
_HEADS = (
    "rank",
    "model",
    "resilience",
    "worst unsafe rate",
    "half of the original's rate back",
    "way to the oracle",
    "benign quality",
    "before",
    "drift",
    "report",
    "original",
)


def _cells(row: Row) -> list[list[str]]:
    """Cells of a row: a figure, then the small texts under it."""
    known = row.low is not None and row.high is not None
    interval = f"{number(row.low)} to {number(row.high)}" if known else "no interval"
    worst = "–" if row.worst is None else percent(row.worst)
    wide = span(row.worst_low, row.worst_high) if row.worst_low is not None else ""  # type: ignore[arg-type]
    before = "–" if row.before is None else percent(row.before)
    return [
        ["–" if row.rank is None else str(row.rank)],
        [row.model, row.note],
        [number(row.resilience), interval],
        [worst, f"{wide}; n = {row.images}", row.worst_attack],
        [row.relapse or "–"],
        [number(row.way), _way(row)],
        [
            *_lowest(row),
            "" if row.untouched is None else f"{percent(row.untouched)} before any attack",
        ],
        [before],
        [figure(row.drift)],
        [row.report],
        [row.original],
    ]


def _lowest(row: Row) -> list[str]:
    """Return the lowest benign quality that counts; the untouched model's without an attack."""
    if row.lowest is None:
        return ["not measured" if row.quality is None else percent(row.quality)]
    return [percent(row.lowest), row.lowest_interval, row.lowest_attack]


def _way(row: Row) -> str:
    if row.way_low is None or row.way_high is None:
        return ""
    return f"{number(row.way_low)} to {number(row.way_high)}"


def leaderboard_markdown(groups: Sequence[Group]) -> str:
    parts = ["# Leaderboard of resilience", _NOTE]
    for place, group in enumerate(groups, start=1):
        parts.append(f"## {_title(place, groups)}")
        parts += [escape(text) for text in _introduction(place, group)]
        parts += ["\n".join(f"- {escape(text)}" for text in group.differences)] * bool(
            group.differences
        )
        rows = [
            [escape(cell[0]) + (f" ({escape('; '.join(filter(None, cell[1:])))})"
                                  if any(cell[1:]) else "") for cell in _cells(row)]
            for row in group.rows
        ]  # fmt: skip
        parts.append(markdown_table(_HEADS, rows))
    return "\n\n".join(parts) + "\n"


def leaderboard_html(groups: Sequence[Group]) -> str:
    sections = []
    for place, group in enumerate(groups, start=1):
        rows = [[_cell(cell) for cell in _cells(row)] for row in group.rows]
        apart = tag("ul", [tag("li", text) for text in group.differences])
        sections.append(
            tag(
                "section",
                tag("h2", _title(place, groups)),
                [tag("p", text) for text in _introduction(place, group)],
                apart if group.differences else None,
                cost_charts(group.rows),
                html_table(
                    _HEADS,
                    rows,
                    caption="Best first, with 95 % intervals",
                    cls="board wrap",
                    labels=_HEADS[1:],
                ),
            )
        )
    head = tag(
        "header",
        tag("div", tag("p", "Resilience probes"), theme_button(), cls="bar"),
        tag("h1", "Leaderboard of resilience"),
        tag("p", _NOTE),
    )
    return page("Leaderboard of resilience", [head, tag("main", sections), tag("footer")])


def _cell(parts: list[str]) -> Markup:
    first, *others = parts
    small: list[Child] = [tag("small", text) for text in others if text]
    return tag("td", first, small) if small else join([first])


def _title(place: int, groups: Sequence[Group]) -> str:
    return "All reports" if len(groups) == 1 else f"Group {place} of {len(groups)}"


def _introduction(place: int, group: Group) -> list[str]:
    count = len(group.attacks)
    said = [f"Scored by “{group.scorer}”, under {count} attack{'s' * (count != 1)}: "
            f"{', '.join(group.attacks[:_MOST_NAMES])}"
            + (f" and {count - _MOST_NAMES} more." if count > _MOST_NAMES else ".")]  # fmt: skip
    if place > 1:
        said.append("Not ranked against group 1, because these probes differ from it:")
    return said
