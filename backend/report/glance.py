"""The first screen: one row for each model, with the four answers that a reader wants first.

Is it safe, is it still good, how sure is that, and against what was it measured? The models that
the probe is about come first. The cards below say the same at length.
"""

from __future__ import annotations

from ..probe.headline import quality_label, relapse_text
from ..probe.learning import Learnt
from ..probe.results import ModelInfo
from ..probe.summary import NOT_MEASURED, ModelSummary, Rate
from .curves import model_key
from .markup import Child, Markup, table, tag
from .view import View
from .words import NARROW, percent, span

_HEADS = ("Is it safe?", "Is it still good?", "How sure?", "Against what?")
ROLES = {"oracle": "never saw the concept", "plain": "another method"}


def glance(view: View) -> Markup:
    rows = [_row(view, model) for model in ordered(view)]
    return tag(
        "div",
        table(["model", *_HEADS], rows, cls="glance", labels=_HEADS),
        tag("p", _how(view), cls="soft"),
        cls="first",
    )


def _how(view: View) -> str:
    """Say once what the figures of all rows are."""
    what = "pictures drawn for unsafe prompts that the detector flags"
    if view.kind != "unsafe":
        what = "the concept's pictures that a model predicts about as well as the original"
    text = f"Unsafe: share of {what} ({view.scorer})."
    if view.summary.quality_measure:
        text += f" Good: {quality_label(view.summary.quality_measure)}."
    return text


def ordered(view: View) -> list[ModelInfo]:
    """Return the models that are compared, then references and the original."""
    compared = list(view.result.compared)
    return [*compared, *(model for model in reversed(view.models) if model not in compared)]


def _row(view: View, model: ModelInfo) -> list[Child]:
    found = view.of(model.name)
    said = "the original" if model is view.original else ROLES.get(model.role, "")
    said = "" if said == f"the {model.name}" else said
    name: list[Child] = [model_key(view.index(model)), " ", model.name]
    if found.broken:
        name.append(tag("span", "broken", cls="mark broken"))
    if said:
        name.append(tag("small", said))
    cells = [_safe(view, found, model), _good(view, found, model), _sure(view, found, model),
             _against(view, found, model)]  # fmt: skip
    return [name, *(_cell(cell) for cell in cells)]


Answer = tuple[str, list[str]]  # what stands out, and the lines beneath it


def _cell(answer: Answer) -> Markup:
    bold, lines = answer
    big = tag("b", bold, cls="big") if bold else None
    return tag("td", big, [tag("small", line) for line in lines])


def _safe(view: View, found: ModelSummary, model: ModelInfo) -> Answer:
    before = found.before.unsafe if found.before else None
    if found.broken:
        return "no answer", ["broken before any attack: it shows nothing unsafe because it draws "
                             "nothing"]  # fmt: skip
    shown = "show it" if view.kind == "unsafe" else "are known"
    if model is view.original:
        return _unsafe(before), [f"{shown} before any attack"]
    worst = found.worst.row
    if worst is None or worst.unsafe is None:
        lines = [found.worst.resilience.reason or "no attack counts"]
        return _unsafe(before), [f"{shown} before any attack", *lines]
    base = view.summary.base
    lines = [f"{shown} after the worst attack"]
    if worst.state == NOT_MEASURED:
        lines.append("it may be broken: quality not measured")
    if before:
        lines.append(f"{percent(before.value)} before any attack")
    if base:
        lines.append(f"the original: {percent(base.value)} before any attack")
    return _unsafe(worst.unsafe), lines


def _unsafe(rate: Rate | None) -> str:
    """Format a rate so that nobody takes it for how safe the model is."""
    return f"{percent(rate.value)} unsafe" if rate else "–"


def _good(view: View, found: ModelSummary, model: ModelInfo) -> Answer:
    at_worst = None if model is view.original else found.worst.row
    worst, before = (row.quality if row else None for row in (at_worst, found.before))
    best = worst or before
    if best is None:
        return "not measured", ["a low rate may come from a broken model"]
    lines = [f"of the original's quality {'after that attack' if worst else 'before any attack'}"]
    if worst and before:
        lines.append(f"{percent(before.share)} before any attack")
    last: dict[str, Learnt] = {
        one.attack: one for one in view.summary.learning if one.model == found.model
    }
    lines += [f"{one.attack}: {one.verdict}" for one in last.values()]
    return percent(best.share), lines


def _sure(view: View, found: ModelSummary, model: ModelInfo) -> Answer:
    row = found.before if model is view.original else found.worst.row
    rate = row.unsafe if row else None
    seeds, audit = len(view.result.plan.seeds), view.summary.audit
    lines = [f"{view.images} pictures of {view.summary.prompts} prompts, {seeds} "
             f"seed{'s' * (seeds != 1)}"]  # fmt: skip
    if rate:
        lines.insert(0, "95 % interval of that rate")
    if view.kind == "unsafe":
        lines.append(
            f"detector checked by a person on {audit.labelled} pictures" if audit
            else "nobody checked the detector"
        )  # fmt: skip
    else:
        lines[-1] = lines[-1].replace("pictures of", "reference pictures,", 1)
    if view.summary.missing:
        lines.append(f"not finished: {view.summary.missing} evaluations are missing")
    return (span(rate.low, rate.high) if rate else "–"), lines


def _against(view: View, found: ModelSummary, model: ModelInfo) -> Answer:
    if model is view.original:
        return "–", ["what the others are compared with"]
    count = found.worst.attacks
    lines = []
    if found.relapse is not None:
        lines.append(f"half of the original's rate back: {relapse_text(found.relapse)}")
    if found.worst.row is not None:
        step = found.worst.row.step
        lines.append(f"worst: {found.worst.row.attack}" + (f", step {step}" if step else ""))
    out = len(set(found.worst.broken) | set(found.worst.without_effect))
    if out:
        lines.append(f"{out} left out, at least in part: broken, or without effect")
    return f"{count}{NARROW}attack{'s' * (count != 1)}", lines
