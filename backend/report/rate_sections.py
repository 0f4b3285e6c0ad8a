"""Sections of the page with the unsafe rates: matrix, steps to relapse, curves."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan.probe import BEFORE
from ..probe.headline import relapse_text
from ..probe.results import ModelInfo
from ..probe.summary import BROKEN, AttackRow, Relapse
from .audit_section import corrected_text
from .counting_words import (
    INTERVALS,
    counting_words,
    effect_words,
    moved_words,
    quality_words,
    worth_words,
)
from .curves import Curve, curve_svg, model_key, quality_svg
from .limits import over_seeds
from .markup import Child, Markup, table, tag
from .view import View
from .words import percent, span

ROLES = {"oracle": "oracle: never saw the concept", "plain": "plain: where the way begins"}


def legend(view: View) -> Markup:
    """List each model with its colour, line and marker."""
    return tag(
        "ul",
        [tag("li", model_key(view.index(model)), model.name) for model in view.models],
        cls="legend",
    )


def matrix_section(view: View) -> Markup:
    """Table of unsafe rates, attack × model, each with the benign quality beside it."""
    heads = ["attack", *(_model_head(view, model) for model in view.models)]
    caption, names = "Unsafe rate, and benign quality beside it", [m.name for m in view.models]
    swept = [attack for attack in view.attacks if attack in view.swept]
    more = folded(
        view, table(heads, _matrix_rows(view, swept), caption=caption, labels=names),
        of_sweeps=True,
    )  # fmt: skip
    return tag(
        "section",
        tag("h2", "Attacks and models", id="matrix"),
        tag("p", "Unsafe rate: share of pictures flagged, at the step where it is highest while "
            f"the model works; “worst” marks each model's one worst attack. {INTERVALS} Beneath "
            "it stands how well the model still draws harmless prompts."),
        tag("p", counting_words(view.summary)),
        table(heads, _matrix_rows(view, (BEFORE, *view.single)), caption=caption, labels=names),
        more if swept else None,
    )  # fmt: skip


def folded(view: View, whole: Markup, *, of_sweeps: bool) -> Markup:
    """Fold a table of the sweeps' attacks, which may be a hundred; leave any other as it is."""
    if not of_sweeps:
        return whole
    count = sum(attack in view.swept for attack in view.attacks)
    return tag("details", tag("summary", f"The {count} attacks of the sweeps"), whole)


def _matrix_rows(view: View, attacks: Sequence[str]) -> list[list[Child]]:
    rows: list[list[Child]] = []
    for attack in attacks:
        name: list[Child] = ["before any attack" if attack == BEFORE else attack]
        if attack in view.with_original:
            name.append(tag("small", "needs the original; not in the headline"))
        effect = view.summary.effect(attack)
        if effect is not None and effect.had_effect is False:
            name += [" ", tag("span", "had no effect", cls="mark weak")]
            name.append(tag("small", f"{effect_words(effect)}; does not count"))
        rows.append([name, *(_rate_cell(view, model.name, attack) for model in view.models)])
    return rows


def _model_head(view: View, model: ModelInfo) -> list[Child]:
    kind = "original" if model is view.original and model.name != "original" else model.method
    return [
        model_key(view.index(model)), " ", model.name,
        tag("span", "broken", cls="mark broken") if view.of(model.name).broken else None,
        tag("small", ROLES[model.role]) if model.role in ROLES else None,
        tag("small", kind) if kind else None,
    ]  # fmt: skip


def _rate_cell(view: View, model: str, attack: str) -> Markup:
    row = view.peak(model, attack)
    if row is None or row.unsafe is None:
        return tag("td", "–", tag("small", "not measured"))
    rate, worst = row.unsafe, view.is_worst(model, attack)
    broken, weak = row.state == BROKEN, row.had_effect is False
    lowest, highest = rate.range
    at = f", step {row.step}" if row.step else ""
    marks = (("worst", worst), ("broken", broken), ("no effect", weak))
    cls = "rate" + " worst" * worst + " broken" * broken + " weak" * (weak and not broken)
    return tag(
        "td",
        tag("b", percent(rate.value)),
        [tag("span", name, cls=f"mark {name.split()[-1]}") for name, held in marks if held],
        tag("small", span(rate.low, rate.high)),
        tag("small", f"{rate.flagged} of {rate.images}{at}{worth_words(rate)}"),
        tag("small", f"seeds: {span(lowest, highest)}") if len(rate.seeds) > 1 else None,
        _corrected(view, row),
        tag("small", quality_words(row), cls="quality"),
        [tag("small", words, cls="more") for words in _more(view, model, attack, row)],
        cls=cls,
        style=None if broken else f"--heat:{rate.value:.3f}",
    )


def _corrected(view: View, row: AttackRow) -> Markup | None:
    """The rate as a person's labels correct it."""
    audit = view.summary.audit
    found = audit.row(row.model, row.attack, row.step) if audit else None
    if found is None or found.value is None:
        return None
    return tag("small", f"corrected: {corrected_text(found)}", cls="more")


def _more(view: View, model: str, attack: str, shown: AttackRow) -> list[str]:
    """Say what a cell's figure leaves out: broken steps, and the steps to relapse."""
    said = []
    broken = view.broken(model, attack)
    if broken is not None and broken.unsafe is not None and broken.step != shown.step:
        rate = percent(broken.unsafe.value)
        said.append(f"broken at step {broken.step}: {rate}, {quality_words(broken)}")
    relapse = view.relapse(model, attack)
    if relapse is not None:
        said.append(f"relapse: {relapse_text(relapse)}")
    return said


def relapse_section(view: View) -> Markup | None:
    """Table of the steps to relapse, attack × model."""
    models = [model for model in view.models[1:] if view.of(model.name).relapses]
    if not models or not view.curved:
        return None
    rows: list[list[Child]] = []
    for attack in (each for each in view.curved if each not in view.swept):
        cells = [view.relapse(model.name, attack) for model in models]
        effect = view.summary.effect(attack)
        weak = effect is not None and effect.had_effect is False
        name: Child = [attack, tag("small", "had no effect")] if weak else attack
        rows.append([name, *(_relapse_cell(cell) for cell in cells)])
    earliest = [view.of(model.name).relapse for model in models]
    rows.append(["earliest that counts", *(_relapse_cell(cell) for cell in earliest)])
    return tag(
        "section",
        tag("h2", "Steps to relapse", id="relapse"),
        tag("p", "Steps of fine-tuning until half of the original's unsafe rate before any attack "
            "is back, as a straight line between evaluated steps; in brackets the 95 % interval by "
            "resampling prompts. Steps at which the model is broken are left out."),
        table(["attack", *(model.name for model in models)], rows, caption="Steps to relapse",
              labels=[model.name for model in models]),
    )  # fmt: skip


def _relapse_cell(found: Relapse | None) -> Markup:
    if found is None:
        return tag("td", "–")
    broken = f"broken from step {found.broken_from}" if found.broken_from else ""
    return tag("td", relapse_text(found), tag("small", broken) if broken else None)


def curve_section(view: View) -> Markup | None:
    """Build two charts per attack that trains, with their figures as a table."""
    panels, swept = (
        [_panel(view, attack, curves) for attack in chosen if (curves := view.curves(attack))]
        for chosen in _curved(view)
    )
    if not panels and not swept:
        return None
    least = percent(view.summary.counting.least_quality)
    return tag(
        "section",
        tag("h2", "Unsafe rate and benign quality during fine-tuning", id="curves"),
        tag("p", f"Unsafe rate at each evaluated step, {over_seeds(len(view.result.plan.seeds))}. "
            "Step 0 is before fine-tuning. Bands are 95 % intervals; a cross marks a step at which "
            "the model is broken. Below it, the benign quality, with the same "
            f"bands where it is a share of pictures: under the dashed line ({least} of the "
            f"original's) a model is called broken.{moved_words(view.summary)}"),
        legend(view),
        tag("div", panels, cls="multiples") if panels else None,
        tag(
            "details",
            tag("summary", f"The {len(swept)} attacks of the sweeps"),
            tag("div", swept, cls="multiples"),
        ) if swept else None,
    )  # fmt: skip


def _curved(view: View) -> tuple[list[str], list[str]]:
    """Return the attacks with curves, and those of sweeps."""
    return (
        [attack for attack in view.curved if attack not in view.swept],
        [attack for attack in view.curved if attack in view.swept],
    )


def _panel(view: View, attack: str, curves: Sequence[Curve]) -> Markup:
    description = " ".join(
        f"{curve.name}: {percent(curve.rates[0])} before, {percent(curve.rates[-1])} at step "
        f"{curve.steps[-1]}."
        for curve in curves
    )
    rows = [
        [row.model, row.step, percent(row.unsafe.value), span(row.unsafe.low, row.unsafe.high),
         quality_words(row, named=False), row.state]
        for curve in curves
        for row in (*view.rows(curve.name, BEFORE), *view.rows(curve.name, attack))
        if row.unsafe
    ]  # fmt: skip
    quality = quality_svg(
        curves, f"Benign quality under {attack}", _quality_description(curves),
        least=view.summary.counting.least_quality,
    )  # fmt: skip
    heads = ["model", "step", "unsafe rate", "95 % interval", "benign quality", "state"]
    return tag(
        "figure",
        tag("figcaption", attack),
        curve_svg(curves, f"Unsafe rate under {attack}", description),
        quality if quality is not None else tag("p", "Benign quality: not measured.", cls="soft"),
        tag(
            "details",
            tag("summary", "These figures"),
            table(heads, rows, caption=f"Unsafe rate under {attack}", cls="wrap"),
            data_print="yes",
        ),
    )


def _quality_description(curves: Sequence[Curve]) -> str:
    return " ".join(
        f"{curve.name}: {percent(points[0][1])} before, {percent(points[-1][1])} of the original's "
        f"at step {points[-1][0]:.0f}."
        for curve in curves
        if (points := curve.quality_points)
    )
