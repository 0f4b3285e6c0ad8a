"""The first screen: one row for each model, with the four answers that a reader wants first.

Is it safe, is it still good, how sure is that, and against what was it measured? The models that
the probe is about come first. The cards below say the same at length.
"""

from __future__ import annotations

from ..plan.concept import shown_names
from ..probe.headline import quality_label, relapse_text
from ..probe.learning import Learnt
from ..probe.results import ModelInfo
from ..probe.summary import NOT_MEASURED, ModelSummary, Rate
from ..probe.worst_case import rate_of
from .curves import model_key
from .learning_section import learnt_words
from .limits import ABUSE, ONE_RUN
from .markup import Child, Markup, table, tag
from .view import View, share_span
from .words import percent, series, span

_MOST_BROKEN = 2
_HEADS = ("Is it still good?", "How sure?", "Against what?")
ROLES = {"oracle": "never saw the concept", "plain": "another method"}


def glance(view: View, size: tuple[int, int] | None = None) -> Markup:
    """Build the block. size: of the pictures, width and height; None where it is not known."""
    concepts = shown_names(view.result.plan.concepts)
    safe = f"Is it safe from: {series(concepts)}?" if len(concepts) <= 3 else "Is it safe?"
    heads = (safe, *_HEADS)
    rows = [_row(view, model) for model in ordered(view)]
    return tag(
        "div",
        table(["model", *heads], rows, cls="glance", labels=heads),
        tag("p", _how(view, size), cls="soft"),
        cls="first",
    )


def _how(view: View, size: tuple[int, int] | None) -> str:
    """Say once what the figures of all rows are."""
    text = f"Unsafe: of the pictures drawn for unsafe prompts, the share that {view.scorer} flags."
    if view.kind != "unsafe":
        text = (
            "Unsafe: of the concept's pictures, the share that a model predicts about as well as "
            f"the original; scorer: {view.scorer}."
        )
    if size:
        text += f" The pictures are {size[0]} × {size[1]} px."
    if view.summary.quality_measure:
        text += f" Good: {quality_label(view.summary.quality_measure)}."
    return f"{text} {ABUSE}"


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
    shown = "show it" if view.kind == "unsafe" else "of the test pictures,"
    if model is view.original:
        return _unsafe(view, before), [f"{shown} before any attack"]
    worst = found.worst.row
    if worst is None or worst.unsafe is None:
        lines = [found.worst.resilience.reason or "no attack counts"]
        return _unsafe(view, before), [f"{shown} before any attack", *lines]
    base = view.summary.base
    lines = [f"{shown} after the worst attack"]
    if worst.state == NOT_MEASURED:
        lines.append("it may be broken: quality not measured")
    if out := left_out(view, found):
        lines.append(f"left out, because the model was broken: {out}")
    untouched = [f"{percent(before.value)}"] if before else []
    untouched += [f"the original {percent(base.value)}"] if base else []
    if untouched:
        lines.append(f"before any attack: {', '.join(untouched)}")
    return _unsafe(view, worst.unsafe), lines


def left_out(view: View, found: ModelSummary) -> str:
    """List what the worst rate leaves out because the model was broken, with its rates."""
    rows = [row for attack in found.worst.broken if (row := view.broken(found.model, attack))]
    rows.sort(key=rate_of, reverse=True)
    said = [
        f"{row.attack}{f', step {row.step}' if row.step else ''} ({percent(rate_of(row))})"
        for row in rows[:_MOST_BROKEN]
    ]
    more = len(rows) - len(said)
    return series([*said, f"{more} more, none of them higher"] if more else said)


def _unsafe(view: View, rate: Rate | None) -> str:
    """Format a rate so that nobody takes it for how safe the model is."""
    word = "unsafe" if view.kind == "unsafe" else "still known"
    return f"{percent(rate.value)} {word}" if rate else "–"


def _good(view: View, found: ModelSummary, model: ModelInfo) -> Answer:
    at_worst = None if model is view.original else view.lowest_quality(model.name)
    worst, before = (row.quality if row else None for row in (at_worst, found.before))
    best = worst or before
    if best is None:
        return "not measured", ["a low rate may come from a broken model"]
    if worst is None or at_worst is None:
        lines = [f"of the original's quality before any attack ({share_span(best)})"]
    else:
        step = f", step {at_worst.step}" if at_worst.step else ""
        lines = [f"of the original's quality at its lowest ({share_span(best)}): "
                 f"{at_worst.attack}{step}"]  # fmt: skip
        lines += [f"{percent(before.share)} before any attack"] if before else []
    last: dict[str, Learnt] = {
        one.attack: one for one in view.summary.learning if one.model == found.model
    }
    lines += [f"{one.attack}: {learnt_words(one)}" for one in last.values()]
    return percent(best.share), lines


def _sure(view: View, found: ModelSummary, model: ModelInfo) -> Answer:
    row = found.worst.row  # of the rate that `_safe` shows
    if model is view.original or row is None or row.unsafe is None:
        row = found.before
    rate = row.unsafe if row and not found.broken else None
    seeds, audit = len(view.result.plan.seeds), view.summary.audit
    lines = [f"{view.images} pictures of {view.summary.prompts} prompts"]
    if rate:
        lines.insert(0, "95 % interval of that rate")
    if view.kind == "unsafe":
        lines.append(
            f"detector checked by a person on {audit.labelled} pictures" if audit
            else "nobody checked the detector"
        )  # fmt: skip
    else:
        lines[-1] = lines[-1].replace("pictures of", "reference pictures,", 1)
    if model is not view.original and view.curved:
        lines.append(ONE_RUN if seeds == 1 else f"{seeds} fine-tuning seeds")
    if view.summary.missing:
        lines.append(f"not finished: {view.summary.missing} evaluations are missing")
    return (span(rate.low, rate.high) if rate else "–"), lines


def _against(view: View, found: ModelSummary, model: ModelInfo) -> Answer:
    if model is view.original:
        return "–", ["what the others are compared with"]
    count = view.tally(model.name)
    lines = []
    if found.relapse is not None:
        lines.append(f"half of the original's rate back: {relapse_text(found.relapse)}")
    if found.worst.row is not None:
        step, rate = found.worst.row.step, found.worst.row.unsafe
        at = f", step {step}" if step else ""
        none = rate is not None and not rate.flagged
        lines.append("worst: 0 after all that count" if none
                     else f"worst: {found.worst.row.attack}{at}")  # fmt: skip
        if found.worst.tied and not none:
            lines.append(f"as high after {series(found.worst.tied)}")
    counted, verb, out = count.partition(" count")
    return counted, [f"{verb}{out}".strip(), *lines]
