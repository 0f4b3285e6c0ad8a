"""Sections of the page besides the rates: utility, plan, limits."""

from __future__ import annotations

from ..plan.probe import BEFORE
from ..probe.summary import AttackRow
from ..probe.utility_figures import utility_direction, utility_label
from .limits import limits
from .markup import Markup, table, tag
from .plan_words import COMMAND, attack_words, job_json, plan_rows
from .rate_sections import folded
from .view import View
from .words import figure


def utility_section(view: View) -> Markup | None:
    """Table of utility figures before and after the attacks."""
    keys = list(
        dict.fromkeys(key for evaluation in view.result.evaluations for key in evaluation.utility)
    )
    if not keys:
        return None
    rows, swept = [], []
    for row in _utility_rows(view):
        when = "before" if row.attack == BEFORE else row.attack
        figures = (figure(row.utility.get(key)) for key in keys)
        part = swept if row.attack in view.swept else rows
        part.append([row.model, tag("td", when, cls="text"), *figures])
    heads = [
        [utility_label(key), tag("small", said) if (said := utility_direction(key)) else None]
        for key in keys
    ]
    seeds = len(view.result.plan.seeds)
    mean = f"the mean over {seeds} fine-tuning seeds" if seeds > 1 else "of one fine-tuning run"
    return tag(
        "section",
        tag("h2", "What else changed", id="utility"),
        tag("p", "Measured against the original before any attack, whose own distances are 0. "
                 f"After an attack, a figure is that of its last step, {mean}: fine-tuning changes "
                 "every model."),
        *(
            folded(view, table(["model", "when", *heads], part, caption="Utility", cls="pairs",
                               labels=["when", *map(utility_label, keys)]),
                   of_sweeps=part is swept)
            for part in (rows, swept) if part
        ),
    )  # fmt: skip


def _utility_rows(view: View) -> list[AttackRow]:
    """Rows of each model unattacked, and at the last step of each attack."""
    last: dict[tuple[str, str], AttackRow] = {}
    for row in view.summary.rows:
        if row.utility:
            last[row.model, row.attack] = row
    return list(last.values())


def plan_section(view: View) -> Markup:
    """The plan in words and as a file, and how to run it again."""
    result = view.result
    return tag(
        "section",
        tag("h2", "The plan", id="plan"),
        table(
            ["attack", "what is done"],
            [[a.name, tag("td", attack_words(a), cls="text")] for a in result.plan.attacks],
            caption="Attacks",
        ),
        table(["", ""], [[k, tag("td", v, cls="text")] for k, v in plan_rows(result)],
              caption="Everything else"),
        table(
            ["checkpoint", "file", "family", "method", "SHA-256"],
            [
                [m.name, tag("td", m.source or "–", cls="text"), m.family or "–", m.method or "–",
                 tag("code", m.sha256 or "–")]
                for m in result.models
            ],
            caption="Checkpoints", cls="wrap",
            labels=("file", "family", "method", "SHA-256"),
        ),
        tag("h3", "How to reproduce it"),
        tag("p", "Save the plan below as ", tag("code", "probe.json"), ", put the files that it "
            "names beside it, install the versions above, and run ", tag("code", COMMAND), ". The "
            "figures of every image are in ", tag("code", "report.json"), "."),
        tag(
            "details",
            tag("summary", "The plan as a file"),
            tag("pre", tag("code", job_json(result)), tabindex=0),
            data_print="yes",
        ),
    )  # fmt: skip


def limits_section(view: View) -> Markup:
    sentences = limits(view.result, kind=view.kind, scorer=view.scorer)
    return tag(
        "section",
        tag("h2", "What these numbers cannot tell", id="limits"),
        tag("ul", [tag("li", sentence) for sentence in sentences]),
    )
