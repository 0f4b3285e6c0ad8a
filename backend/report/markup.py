"""HTML made of elements: whatever is not `Markup` is escaped, so prompts and names cannot be tags.

tag("p", "3 < 4")                 <p>3 &lt; 4</p>
tag("td", tag("b", name), cls="worst")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest
from typing import TypeAlias

from ..text.shown import visible

_VOID = frozenset({"br", "hr", "img", "input", "meta"})
Child: TypeAlias = "str | int | Iterable[Child] | None"


class Markup(str):
    """Text that is HTML already. Made only by `tag`, and from files of this package."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """Build an element. In attributes `_` means `-`, `cls` for `class`, a last `_` for nothing.

    True gives an attribute without a value; None and False leave it out.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = "class" if key == "cls" else key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escape(visible(str(value)))}"')
    parts.append(">")
    if name not in _VOID:
        parts += [join(children), f"</{name}>"]
    return Markup("".join(parts))


def join(children: Iterable[Child]) -> Markup:
    """Children one after the other; None is nothing, nested lists are taken apart."""
    found = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            found.append(child)
        elif isinstance(child, str | int):
            found.append(escape(visible(str(child))))
        else:
            found.append(join(child))
    return Markup("".join(found))


def table(
    head: Iterable[Child],
    rows: Iterable[Iterable[Child]],
    *,
    caption: str = "",
    cls: str = "",
    labels: Sequence[str] = (),
) -> Markup:
    """A table with a header row whose first cell of each row is a row header. Cells that are
    `<td>` already are taken as they are.

    labels: names of the columns after the first. With them a narrow screen shows each row as a
    block, in which each cell has its label before it, and nothing scrolls sideways.
    """

    def cell(value: Child, label: str) -> Markup:
        ready = isinstance(value, Markup) and value.startswith(("<td", "<th"))
        whole = join([value]) if ready else tag("td", value)
        if not label:
            return whole
        return Markup(f'<td data-label="{escape(visible(label))}"{whole[3:]}')

    cls = f"{cls} stack".strip() if labels else cls
    body = []
    for row in rows:
        first, *others = row
        named = zip_longest(others, labels[: len(others)], fillvalue="")
        cells = [cell(value, label) for value, label in named]  # type: ignore[arg-type]
        body.append(tag("tr", tag("th", first, scope="row"), cells))
    heads = list(head)
    return join([
        tag("p", caption, cls="caption") if caption else None,
        scroller(
            tag("thead", tag("tr", [tag("th", value, scope="col") for value in heads]))
            if any(heads) else None,
            tag("tbody", body),
            label=caption or "table", cls=cls,
        ),
    ])  # fmt: skip


def scroller(*parts: Child, label: str, cls: str = "") -> Markup:
    """A table that scrolls on its own where the page is narrow, by keyboard too."""
    inner = tag("table", *parts, cls=cls or None, aria_label=label)
    return tag("div", inner, cls="scroll", tabindex=0, role="region", aria_label=label)
