"""Sections of the page with tables and curves."""

from __future__ import annotations

from ..plan.probe import BEFORE
from ..probe.results import ModelInfo
from ..probe.summary import AttackRow
from ..probe.utility_figures import utility_direction, utility_label
from .curves import curve_svg, model_key
from .limits import limits
from .markup import Child, Markup, table, tag
from .plan_words import COMMAND, attack_words, job_json, plan_rows
from .view import View
from .words import figure, percent, span


def legend(view: View) -> Markup:
    """List each model with its colour, line and marker."""
    return tag(
        "ul",
        [tag("li", model_key(view.index(model)), model.name) for model in view.models],
        cls="legend",
    )


def matrix_section(view: View) -> Markup:
    """Table of unsafe rates, attack × model."""
    rows = []
    for attack in (BEFORE, *view.attacks):
        name: Child = "before any attack" if attack == BEFORE else attack
        if attack in view.with_original:
            name = [attack, tag("small", "needs the original; not in the headline")]
        rows.append([name, *(_rate_cell(view, model.name, attack) for model in view.models)])
    heads = [_model_head(view, model) for model in view.models]
    return tag(
        "section",
        tag("h2", "Attacks and models", id="matrix"),
        table(
            ["attack", *heads],
            rows,
            caption="Unsafe rate: share of pictures flagged, with its 95 % interval. Each attack "
            "at the step where the rate is highest; “worst” marks each model's worst attack. An "
            "attack that needs the original checkpoint is shown, but does not count.",
        ),
    )


def _model_head(view: View, model: ModelInfo) -> list[Child]:
    kind = "original" if model is view.original and model.name != "original" else model.method
    return [model_key(view.index(model)), " ", model.name, tag("small", kind) if kind else None]


def _rate_cell(view: View, model: str, attack: str) -> Markup:
    row = view.peak(model, attack)
    if row is None or row.unsafe is None:
        return tag("td", "–", tag("small", "not measured"))
    rate, top = row.unsafe, view.worst(model)
    worst = top is not None and top.attack == attack
    lowest, highest = rate.range
    return tag(
        "td",
        tag("b", percent(rate.value)),
        tag("span", "worst", cls="mark") if worst else None,
        tag("small", span(rate.low, rate.high)),
        tag(
            "small", f"{rate.flagged} of {rate.images}" + (f", step {row.step}" if row.step else "")
        ),
        tag("small", f"seeds: {span(lowest, highest)}") if len(rate.seeds) > 1 else None,
        cls="rate worst" if worst else "rate",
        style=f"--heat:{rate.value:.3f}",
    )


def curve_section(view: View) -> Markup | None:
    """Build one chart per attack that trains, with its figures as a table."""
    panels = []
    for attack in view.curved:
        curves = view.curves(attack)
        if not curves:
            continue
        description = " ".join(
            f"{curve.name}: {percent(curve.rates[0])} before, {percent(curve.rates[-1])} at step "
            f"{curve.steps[-1]}."
            for curve in curves
        )
        rows = [
            [curve.name, step, percent(rate), span(low, high)]
            for curve in curves
            for step, rate, low, high in zip(
                curve.steps, curve.rates, curve.lows, curve.highs, strict=True
            )
        ]
        panels.append(
            tag(
                "figure",
                tag("figcaption", attack),
                curve_svg(curves, f"Unsafe rate under {attack}", description),
                tag(
                    "details",
                    tag("summary", "These figures"),
                    table(
                        ["model", "step", "unsafe rate", "95 % interval"],
                        rows,
                        caption=f"Unsafe rate under {attack}",
                    ),
                ),
            )
        )
    if not panels:
        return None
    return tag(
        "section",
        tag("h2", "Unsafe rate during fine-tuning", id="curves"),
        tag("p", "Unsafe rate at each evaluated step, over all seeds; step 0 is before "
                 "fine-tuning. Bands are 95 % intervals."),
        legend(view),
        tag("div", panels, cls="multiples"),
    )  # fmt: skip


def utility_section(view: View) -> Markup | None:
    """Table of utility figures before and after the attacks."""
    keys = list(
        dict.fromkeys(key for evaluation in view.result.evaluations for key in evaluation.utility)
    )
    if not keys:
        return None
    rows = []
    for row in _utility_rows(view):
        when = "before" if row.attack == BEFORE else row.attack
        figures = (figure(row.utility.get(key)) for key in keys)
        rows.append([row.model, tag("td", when, cls="text"), *figures])
    heads = [
        [utility_label(key), tag("small", said) if (said := utility_direction(key)) else None]
        for key in keys
    ]
    return tag(
        "section",
        tag("h2", "What else changed", id="utility"),
        tag("p", "Measured against the original before any attack, whose own distances are 0. "
                 "After an attack, a figure is the mean over seeds at the last step: fine-tuning "
                 "changes every model."),
        table(["model", "when", *heads], rows, caption="Utility"),
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
            caption="Checkpoints",
        ),
        tag("h3", "How to reproduce it"),
        tag("p", "Save the plan below as ", tag("code", "probe.json"), ", put the files that it "
            "names beside it, install the versions above, and run ", tag("code", COMMAND), ". The "
            "figures of every image are in ", tag("code", "report.json"), "."),
        tag(
            "details",
            tag("summary", "The plan as a file"),
            tag("pre", tag("code", job_json(result)), tabindex=0),
        ),
    )  # fmt: skip


def limits_section(view: View) -> Markup:
    sentences = limits(view.result, kind=view.kind, scorer=view.scorer)
    return tag(
        "section",
        tag("h2", "What these numbers cannot tell", id="limits"),
        tag("ul", [tag("li", sentence) for sentence in sentences]),
    )
