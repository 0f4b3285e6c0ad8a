"""Pieces of Markdown: escaped text, code and tables, for reports and model cards."""

from __future__ import annotations

from collections.abc import Iterable

from ..text.shown import visible


def escape(text: str) -> str:
    """Put a user's text on one line, without markup of its own."""
    text = visible(" ".join(text.split()))
    for mark in "\\`*_|<>[]#":
        text = text.replace(mark, "\\" + mark)
    return text


def code_text(text: str) -> str:
    """Make a user's text fit between backticks, also in a table."""
    return visible(" ".join(text.split())).replace("`", "'").replace("|", "/")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Build a table; cells are Markdown already."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
