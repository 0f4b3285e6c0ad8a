"""Trainability, for page and Markdown: how well each model learns a user's harmless data."""

from __future__ import annotations

from ..probe.learning import LEAST, NOT_TAUGHT, Learnt
from .markdown_text import escape
from .markdown_text import table as markdown_table
from .markup import Markup, table, tag
from .view import View
from .words import figure, percent, span

INTRODUCTION = (
    "Denoising loss on images of the attack's harmless data that it did not train on, before and "
    "at each evaluated step; lower is better. As far as the original: its way is how far its own "
    "loss falls by the same step, and at 100 % a model predicts these images as well as it then "
    "does. "
    f"From {percent(LEAST)} on, with the whole interval, it learns as well; a model that begins "
    "with a higher loss has to make up for it. Own decrease leaves the beginning out. A model that "
    "has to be unlearnt with difficulty should still learn a user's style or subject. This judges "
    "predictions, not whether a person likes the pictures."
)
_HEADS = ("attack", "model", "step", "verdict", "as far as the original", "loss before",
          "loss after", "own decrease", "images")  # fmt: skip


def introduction(view: View) -> str:
    """Explain the table; its intervals are over images alone."""
    seeds = len(view.result.plan.seeds)
    of = f"Each loss is the mean over {seeds} fine-tuning seeds" if seeds > 1 else (
        "Each loss is of one fine-tuning run, and another run may differ by more than an interval "
        "says")  # fmt: skip
    return f"{INTRODUCTION} Intervals resample the held-out images. {of}."


def learning_section(view: View) -> Markup | None:
    rows = [_row(one) for one in view.summary.learning]
    if not rows:
        return None
    return tag(
        "section",
        tag("h2", "Trainability", id="learning"),
        tag("p", introduction(view)),
        table(_HEADS, rows, caption="Held-out loss", cls="wrap pairs", labels=_HEADS[1:]),
    )


def learning_markdown(view: View) -> list[str]:
    """Write the section as Markdown lines."""
    rows = [list(map(escape, _row(one))) for one in view.summary.learning]
    if not rows:
        return []
    return ["### Trainability", introduction(view), markdown_table(_HEADS, rows)]


def learnt_words(one: Learnt) -> str:
    """Format as `68.2 % as far as the original (55.0 to 80.1 %): learns less of it`."""
    if one.reached is None or one.verdict == NOT_TAUGHT:
        return one.verdict
    return f"{_share(one.reached, one.reached_low, one.reached_high)}: {one.verdict}"


def _row(one: Learnt) -> list[str]:
    way = _share(one.reached, one.reached_low, one.reached_high, of="")
    own = _share(one.share, one.low, one.high, of="")
    return [one.attack, one.model, str(one.step), one.verdict, way, figure(one.before),
            figure(one.after), own, str(one.images)]  # fmt: skip


def _share(
    value: float | None, low: float | None, high: float | None, of: str = " as far as the original"
) -> str:
    if value is None:
        return "–"
    interval = f" ({span(low, high)})" if low is not None and high is not None else ""
    return f"{percent(value)}{of}{interval}"
