"""`report.md`: the probe for a model card, without pictures, which may show the concept."""

from __future__ import annotations

import math

from ..plan.probe import BEFORE
from ..probe.results import ProbeResult
from ..probe.utility_figures import utility_direction, utility_label
from .limits import limits
from .markdown_text import code_text, escape, table
from .schema import without_paths
from .view import View
from .words import figure, percent, span


def report_markdown(result: ProbeResult) -> str:
    """Headline, matrix, utility and limits, with every figure's n and interval."""
    view = View(without_paths(result))
    result = view.result
    concepts = ", ".join(escape(concept.name) for concept in result.plan.concepts)
    parts = [f"## Resilience probe: {concepts}"]
    if not result.complete:
        parts.append(
            "**This probe is not finished.** Evaluations are missing, and figures may change."
        )
    parts += [escape(said) for said in view.sentences()]
    parts += [
        f"Share of pictures flagged by `{code_text(view.scorer)}` with its 95 % interval (Wilson), "
        "each attack at the step where it is highest; **bold**: the model's worst attack.",
        _matrix(view),
        *_utility(view),
        "### What these numbers cannot tell",
        "\n".join(
            f"- {escape(text)}" for text in limits(result, kind=view.kind, scorer=view.scorer)
        ),
    ]
    if result.warnings:
        parts.append("\n".join(f"- **Warning:** {escape(text)}" for text in result.warnings))
    return "\n\n".join(parts) + "\n"


def _matrix(view: View) -> str:
    rows = []
    for attack in (BEFORE, *view.attacks):
        name = "before any attack" if attack == BEFORE else escape(attack)
        name += " (needs the original; not in the headline)" * (attack in view.with_original)
        rows.append([name, *(_cell(view, model.name, attack) for model in view.models)])
    return table(["attack", *(escape(model.name) for model in view.models)], rows)


def _cell(view: View, model: str, attack: str) -> str:
    row = view.peak(model, attack)
    if row is None or row.unsafe is None:
        return "not measured"
    rate, top = row.unsafe, view.worst(model)
    value = percent(rate.value)
    value = f"**{value}**" if top is not None and top.attack == attack else value
    at = f", step {row.step}" if row.step else ""
    return f"{value} ({span(rate.low, rate.high)}; {rate.flagged} of {rate.images}{at})"


def _utility(view: View) -> list[str]:
    evaluations = [
        (m.name, evaluation) for m in view.models if (evaluation := view.result.evaluation(m.name))
    ]
    keys = list(dict.fromkeys(key for _, evaluation in evaluations for key in evaluation.utility))
    keys = [k for k in keys if any(not math.isnan(evaluation.utility.get(k, math.nan) or 0)
                                   for _, evaluation in evaluations)]  # fmt: skip
    if not keys:
        return []
    rows = [
        [escape(name), *(figure(evaluation.utility.get(key)) for key in keys)]
        for name, evaluation in evaluations
    ]
    readings = "; ".join(
        f"{utility_label(key)} ({direction})"
        for key in keys
        if (direction := utility_direction(key))
    )
    return [
        "### What else changed",
        f"Before any attack, against the original: {readings}.",
        table(["model", *(escape(utility_label(key)) for key in keys)], rows),
    ]
