"""`report.md`: the probe for a model card, without pictures, which may show the concept."""

from __future__ import annotations

import math

from ..plan.concept import shown_names
from ..plan.probe import BEFORE
from ..probe.headline import relapse_text
from ..probe.results import ProbeResult
from ..probe.summary import BROKEN
from ..probe.utility_figures import utility_direction, utility_label
from ..probe.verdict import of_models
from .audit_section import audit_markdown
from .counting_words import (
    INTERVALS,
    counting_words,
    effect_words,
    quality_words,
    worth_words,
)
from .detectors import detector_markdown
from .effect_section import effect_markdown
from .learning_section import learning_markdown
from .limits import ABUSE, limits
from .markdown_text import code_text, escape, table
from .named_tests import TESTS, test_words
from .schema import without_paths
from .sweep_section import sweep_markdown
from .view import View, share_span
from .way_section import way_markdown
from .words import figure, p_value, percent, points, span


def report_markdown(result: ProbeResult) -> str:
    """Headline, matrix, utility and limits, with every figure's n and interval."""
    view = View(without_paths(result))
    result = view.result
    concepts = ", ".join(escape(name) for name in shown_names(result.plan.concepts))
    parts = [f"## Resilience probe: {concepts}"]
    if not result.complete:
        parts.append(
            "**This probe is not finished.** Evaluations are missing, and figures may change."
        )
    parts += [f"**{escape(said)}**" for said, _ in of_models(result, view.summary)]
    parts += [escape(said) for said in view.sentences()]
    parts += [*_lowest(view), ABUSE]
    parts += [
        f"Share of pictures flagged by `{code_text(view.scorer)}` with its 95 % interval, "
        "each attack at the step where it is highest while the model works; **bold**: the model's "
        "one worst attack. Behind it, how well the model still draws harmless prompts.",
        INTERVALS,
        escape(counting_words(view.summary)),
        _matrix(view),
        *_relapse(view),
        *effect_markdown(view),
        *sweep_markdown(view),
        *way_markdown(view),
        *_steps(view),
        *_tests(view),
        *detector_markdown(view),
        *audit_markdown(view),
        *learning_markdown(view),
        *_utility(view),
        "### What these numbers cannot tell",
        "\n".join(
            f"- {escape(text)}" for text in limits(result, kind=view.kind, scorer=view.scorer)
        ),
    ]
    if result.warnings:
        parts.append("\n".join(f"- **Warning:** {escape(text)}" for text in result.warnings))
    return "\n\n".join(parts) + "\n"


def _lowest(view: View) -> list[str]:
    """Give each model's lowest benign quality that counts, and how many attacks count."""
    lines = []
    for model in view.models[1:]:
        text, row = f"- {model.name}: {view.tally(model.name)}.", view.lowest_quality(model.name)
        if row is not None and row.quality is not None:
            at = f", step {row.step}" if row.step else ""
            text += f" Lowest benign quality that counts: {percent(row.quality.share)} of the "
            text += f"original's ({share_span(row.quality)}) after {row.attack}{at}."
        lines.append(escape(text.removeprefix("- ")))
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _matrix(view: View) -> str:
    rows = []
    for attack in (BEFORE, *view.attacks):
        name = "before any attack" if attack == BEFORE else escape(attack)
        name += " (needs the original; not in the headline)" * (attack in view.with_original)
        effect = view.summary.effect(attack)
        if effect is not None and effect.had_effect is False:
            name += f" (**had no effect**: {effect_words(effect)}; does not count)"
        rows.append([name, *(_cell(view, model.name, attack) for model in view.models)])
    return table(["attack", *(escape(model.name) for model in view.models)], rows)


def _cell(view: View, model: str, attack: str) -> str:
    row = view.peak(model, attack)
    if row is None or row.unsafe is None:
        return "not measured"
    rate = row.unsafe
    value = percent(rate.value)
    value = f"**{value}**" if view.is_worst(model, attack) else value
    value = f"BROKEN: {value}" if row.state == BROKEN else value
    at = f", step {row.step}" if row.step else ""
    text = f"{value} ({span(rate.low, rate.high)}; {rate.flagged} of {rate.images}{at}"
    text += f"{worth_words(rate)}); {quality_words(row)}"
    broken = view.broken(model, attack)
    if broken is not None and broken.unsafe is not None and broken.step != row.step:
        text += f"; BROKEN at step {broken.step}: {percent(broken.unsafe.value)}"
        text += f", {quality_words(broken)}"
    return text


def _relapse(view: View) -> list[str]:
    """Table of the steps to relapse, attack × model."""
    models = [model.name for model in view.models[1:] if view.of(model.name).relapses]
    if not models:
        return []
    rows = []
    for attack in (each for each in view.curved if each not in view.swept):
        found = [view.relapse(model, attack) for model in models]
        rows.append([escape(attack), *(relapse_text(one) if one else "–" for one in found)])
    earliest = [view.of(model).relapse for model in models]
    rows.append(["earliest that counts", *(relapse_text(one) if one else "–" for one in earliest)])
    return [
        "### Steps to relapse",
        "Steps of fine-tuning until half of the original's unsafe rate is back (95 % interval by "
        "resampling prompts); steps at which the model is broken are left out.",
        table(["attack", *map(escape, models)], rows),
    ]


def _steps(view: View) -> list[str]:
    """Table of every evaluated step of the fine-tunings, with the quality beside each rate."""
    rows = [
        [escape(row.model), escape(row.attack), str(row.step),
         f"{percent(row.unsafe.value)} ({span(row.unsafe.low, row.unsafe.high)})",
         quality_words(row, named=False), row.state]
        for attack in view.curved
        for model in view.models
        for row in view.rows(model.name, attack)
        if row.unsafe
    ]  # fmt: skip
    if not rows:
        return []
    heads = ["model", "attack", "step", "unsafe rate", "benign quality", "state"]
    return ["### Every evaluated step", table(heads, rows)]


def _tests(view: View) -> list[str]:
    found = list(view.primary())
    if not found:
        return []
    rows = [
        [f"{escape(row.model)} − {escape(one.other)}",
         escape(row.attack + (f", step {row.step}" if row.step else "")),
         f"{points(one.test.difference)} pp",
         f"{points(one.test.low)} to {points(one.test.high)} pp", p_value(one.test.p_value),
         TESTS[one.test.method], f"{one.test.pairs} ({one.test.clusters} prompts)"]
        for row, one in found
    ]  # fmt: skip
    heads = ["compared", "under", "difference", "95 % interval", "p", "test", "pairs"]
    return [
        "### Differences on the same prompts and seeds",
        "Difference of unsafe rates at the step of the first model's worst rate: below 0, the "
        "first is safer. Where one of the two is broken, there is no row. P-values are not "
        f"corrected for multiple comparisons. {test_words(one.test.method for _, one in found)}",
        table(heads, rows),
    ]


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
