"""The parts of the page that are tables and curves."""

from __future__ import annotations

import math

from ..probe_config import BEFORE
from ..probe_results import ModelInfo
from .curves import curve_svg, marker_svg
from .limits import limits
from .markup import Child, Markup, table, tag
from .plan_words import COMMAND, attack_words, job_json, plan_rows
from .view import Rate, View
from .words import figure, percent, span, utility_name


def legend(view: View) -> Markup:
    """Colour, line and marker of each model, with its file."""
    return tag(
        "ul",
        [tag("li", marker_svg(view.index(model)), model.name) for model in view.models],
        cls="legend",
    )


def matrix_section(view: View) -> Markup:
    """Attack × model."""
    worst = {model.name: view.worst_attack(model.name) for model in view.models}
    rows = []
    for attack in (BEFORE, *view.attacks):
        name = "before any attack" if attack == BEFORE else attack
        cells = [
            _rate_cell(view.worst_step(model.name, attack), worst[model.name] == attack)
            for model in view.models
        ]
        rows.append([name, *cells])
    heads = [_model_head(view, model) for model in view.models]
    return tag(
        "section",
        tag("h2", "Attacks and models", id="matrix"),
        table(
            ["attack", *heads],
            rows,
            caption="Unsafe rate: share of pictures flagged, with its 95 % interval. Each attack "
            "at the step where the rate is highest; “worst” marks each model's worst attack.",
        ),
    )


def _model_head(view: View, model: ModelInfo) -> list[Child]:
    kind = "original" if model is view.original and model.name != "original" else model.method
    return [marker_svg(view.index(model)), " ", model.name, tag("small", kind) if kind else None]


def _rate_cell(rate: Rate | None, worst: bool) -> Markup:
    if rate is None:
        return tag("td", "–", tag("small", "not measured"))
    at = f", step {rate.step}" if rate.step else ""
    return tag(
        "td",
        tag("b", percent(rate.rate)),
        tag("span", "worst", cls="mark") if worst else None,
        tag("small", span(rate.low, rate.high)),
        tag("small", f"{rate.hits} of {rate.images}{at}"),
        cls="rate worst" if worst else "rate",
        style=f"--heat:{rate.rate:.3f}",
    )


def curve_section(view: View) -> Markup | None:
    """One small multiple per attack that trains, with its figures as a table."""
    panels = []
    for number, attack in enumerate(view.curved):
        curves = view.curves(attack)
        if not curves:
            continue
        label = "Unsafe rate by fine-tuning step. " + " ".join(
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
                curve_svg(curves, f"curve-{number}", label),
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
        tag("h2", "As fine-tuning goes on", id="curves"),
        tag("p", "Unsafe rate at each step that was looked at, over all seeds; step 0 is before "
                 "fine-tuning. Bands are 95 % intervals."),
        legend(view),
        tag("div", panels, cls="multiples"),
    )  # fmt: skip


def utility_section(view: View) -> Markup | None:
    """What else changed: each figure before, and after the attacks."""
    keys = list(dict.fromkeys(key for look in view.result.looks for key in look.utility))
    if not keys:
        return None
    rows = []
    for model in view.models:
        before = view.result.look(model.name)
        if before is not None:
            rows.append([model.name, "before", *(figure(before.utility.get(k)) for k in keys)])
        for attack in view.attacks:
            looks = view.result.looks_of(model.name, attack)
            last = max((look.step for look in looks), default=0)
            ends = [look for look in looks if look.step == last]
            if ends:
                rows.append(
                    [model.name, tag("td", attack, cls="text"), *(_mean(ends, key) for key in keys)]
                )
    heads = []
    for key in keys:
        words, reading = utility_name(key)
        heads.append([words, tag("small", reading) if reading else None])
    return tag(
        "section",
        tag("h2", "What else changed", id="utility"),
        tag("p", "Measured against the original before any attack, which is 0 from itself where a "
                 "figure is a distance. After an attack, it is the mean over seeds at the last "
                 "step: fine-tuning moves every model."),
        table(["model", "when", *heads], rows, caption="Utility"),
    )  # fmt: skip


def _mean(looks: list, key: str) -> str:
    values = [look.utility[key] for look in looks if look.utility.get(key) is not None]
    values = [value for value in values if not math.isnan(value)]
    return figure(sum(values) / len(values)) if values else "–"


def plan_section(view: View) -> Markup:
    """The plan in words, as a file, and how to run it again."""
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
                 tag("td", tag("code", m.sha256 or "–"), cls="text")]
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
