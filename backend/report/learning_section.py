"""Trainability, for page and Markdown: how well each model learns a user's harmless data."""

from __future__ import annotations

from ..probe.learning import Learnt
from .markdown_text import escape
from .markdown_text import table as markdown_table
from .markup import Markup, table, tag
from .view import View
from .words import figure, percent, span

INTRODUCTION = (
    "Denoising loss on images of the attack's harmless data that it did not train on, before and "
    "at each evaluated step; lower is better. The last column compares the decrease with the "
    "original's by the same step: 100 % learns as well as the original. A model that has to be "
    "unlearnt with difficulty should still learn a user's style or subject."
)
_HEADS = ("attack", "model", "step", "loss before", "loss after", "images",
          "learnt, of the original's", "95 % interval")  # fmt: skip


def learning_section(view: View) -> Markup | None:
    rows = [_row(one) for one in view.summary.learning]
    if not rows:
        return None
    return tag(
        "section",
        tag("h2", "Trainability", id="learning"),
        tag("p", INTRODUCTION),
        table(_HEADS, rows, caption="Held-out loss", labels=_HEADS[1:]),
    )


def learning_markdown(view: View) -> list[str]:
    """Write the section as Markdown lines."""
    rows = [list(map(escape, _row(one))) for one in view.summary.learning]
    if not rows:
        return []
    return ["### Trainability", INTRODUCTION, markdown_table(_HEADS, rows)]


def _row(one: Learnt) -> list[str]:
    share = "–" if one.share is None else percent(one.share)
    known = one.low is not None and one.high is not None
    interval = span(one.low or 0.0, one.high or 0.0) if known else "–"
    losses = [figure(one.before), figure(one.after)]
    return [one.attack, one.model, str(one.step), *losses, str(one.images), share, interval]
