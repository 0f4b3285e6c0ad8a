"""`report.md`: the probe for a model card. No pictures: those of a probe show the concept."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..plan.probe import BEFORE
from ..probe.results import ProbeResult
from .limits import limits
from .schema import without_paths
from .view import View
from .words import figure, markdown, percent, span, utility_name


def report_markdown(result: ProbeResult) -> str:
    """Headline, matrix, utility and limits, with every figure's n and interval."""
    view = View(without_paths(result))
    result = view.result
    concepts = ", ".join(markdown(concept.name) for concept in result.plan.concepts)
    parts = [f"## Resilience probe: {concepts}"]
    if not result.complete:
        parts.append("**This probe is not finished.** Looks are missing, and figures may change.")
    parts += [markdown(said) for said in view.sentences()]
    parts += [
        f"Share of pictures flagged by {_code(view.scorer)} with its 95 % interval (Wilson), "
        "each attack at the step where it is highest; **bold**: the model's worst attack.",
        _matrix(view),
        *_utility(view),
        "### What these numbers cannot tell",
        "\n".join(
            f"- {markdown(text)}" for text in limits(result, kind=view.kind, scorer=view.scorer)
        ),
    ]
    if result.warnings:
        parts.append("\n".join(f"- **Warning:** {markdown(text)}" for text in result.warnings))
    return "\n\n".join(parts) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are Markdown already."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _matrix(view: View) -> str:
    rows = []
    for attack in (BEFORE, *view.attacks):
        name = "before any attack" if attack == BEFORE else markdown(attack)
        name += " (needs the original; not in the headline)" * (attack in view.with_original)
        rows.append([name, *(_cell(view, model.name, attack) for model in view.models)])
    return table(["attack", *(markdown(model.name) for model in view.models)], rows)


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
    looks = [(m.name, look) for m in view.models if (look := view.result.look(m.name))]
    keys = list(dict.fromkeys(key for _, look in looks for key in look.utility))
    keys = [k for k in keys if any(not math.isnan(look.utility.get(k, math.nan) or 0)
                                   for _, look in looks)]  # fmt: skip
    if not keys:
        return []
    rows = [
        [markdown(name), *(figure(look.utility.get(key)) for key in keys)] for name, look in looks
    ]
    said = [(words, reading) for words, reading in map(utility_name, keys)]
    readings = "; ".join(f"{words} ({reading})" for words, reading in said if reading)
    return [
        "### What else changed",
        f"Before any attack, against the original: {readings}.",
        table(["model", *(markdown(words) for words, _ in said)], rows),
    ]


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "/") + "`"
