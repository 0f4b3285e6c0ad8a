"""The cards at the top of the page: for each model what a reader asks first.

Is it safe, is it still good, how sure is that, and against what was it measured? The models that
the probe is about come first, so that a phone's first screen shows one of them.
"""

from __future__ import annotations

from ..plan.attack import FineTuneAttack, LoraAttack
from ..probe.headline import none_words, quality_label, relapse_text
from ..probe.results import ModelInfo
from ..probe.summary import NOT_MEASURED, AttackRow, ModelSummary
from ..probe.verdict import lead_of
from .audit_section import corrected_text
from .curves import model_key
from .glance import left_out
from .learning_section import learnt_words
from .markup import Child, Markup, tag
from .view import View, share_span
from .words import NARROW, number, percent, series, span


def model_cards(view: View) -> list[Markup]:
    """Return a card for each model: those that are compared, then references and the original."""
    compared = view.result.compared
    others = [model for model in view.models if model not in compared]
    return [_card(view, model) for model in (*compared, *reversed(others))]


def _card(view: View, model: ModelInfo) -> Markup:
    found = view.of(model.name)
    key = model_key(view.index(model))
    mark = tag("span", "broken", cls="mark broken") if found.broken else None
    parts: list[Child] = [tag("h2", key, model.name, mark)]
    if model.role:
        parts.append(tag("p", {"oracle": "oracle: never saw the concept"}.get(model.role, "plain: "
                         "where the way begins"), cls="quality"))  # fmt: skip
    questions = [
        ("Is it safe?", _safe(view, found, model)),
        ("Is it still good?", _good(view, found, model)),
        ("Does it still learn?", _learns(view, model)),
        ("How sure?", _sure(view, found)),
        ("Against what?", _against(view, found, model)),
    ]
    if model is view.original:
        questions = questions[:3]
    answers = [[tag("dt", asked), [tag("dd", line) for line in lines]]
               for asked, lines in questions if lines]  # fmt: skip
    return tag("article", parts, tag("dl", answers), cls="card broken" if found.broken else "card")


def _safe(view: View, found: ModelSummary, model: ModelInfo) -> list[Child]:
    """The worst rate against the original's, the rate before, and what is left of it."""
    lines: list[Child] = []
    what = "unsafe pictures: " if view.kind == "unsafe" else "test pictures still known: "
    if model is not view.original:
        kept, worst = found.worst.resilience, found.worst.row
        said, kind = view.verdict(model.name)
        lines.append(tag("b", lead_of(said), cls=f"answer {kind}".strip()))
        if found.broken:
            lines.append("It is broken before any attack, and a model that draws nothing shows "
                         "nothing unsafe either.")  # fmt: skip
        if kept.value is None:
            lines.append(f"Resilience cannot be given: {kept.reason}.")
        if worst is not None and worst.unsafe is not None:
            base = view.summary.base
            of = f" (the original: {percent(base.value)})" if base else ""
            also = found.worst.tied
            alike = f", and as high after {series(also)}" if also else ""
            after = f"{_where(worst)}{alike}" if worst.unsafe.flagged else none_words(found.worst)
            lines.append([what, tag("b", percent(worst.unsafe.value), cls="big"),
                          f" at worst{of}, after {after}"])  # fmt: skip
            lines += _corrected(view, worst)
        if kept.value is not None:
            lines += _resilience(view, found)
    before = found.before
    if before is not None and before.unsafe is not None:
        rate = before.unsafe
        lines.append([what, tag("b", percent(rate.value)), " before any attack "
                      f"({span(rate.low, rate.high)})"])  # fmt: skip
        if model is view.original:
            lines += _corrected(view, before)
    return lines


def _resilience(view: View, found: ModelSummary) -> list[Child]:
    kept = found.worst.resilience
    assert kept.value is not None
    lines: list[Child] = []
    if kept.low is not None and kept.high is not None:
        lines.append(_scale(kept.value, kept.low, kept.high))
        lines.append(f"resilience {number(kept.value)} ({number(kept.low)} to "
                     f"{number(kept.high)}); 1: nothing came back")  # fmt: skip
    else:
        lines.append(f"resilience {number(kept.value)}, without an interval: {kept.reason}")
    way = view.summary.way(found.model)
    if way is not None and way.value is not None:
        known = way.low is not None and way.high is not None
        interval = f" ({number(way.low)} to {number(way.high)})" if known else ""
        lines.append(f"of the way to the oracle: {number(way.value)}{interval}, after {way.attack}")
    return lines


def _good(view: View, found: ModelSummary, model: ModelInfo) -> list[Child]:
    """Benign quality before any attack, at its lowest that counts, and where the rate is worst."""
    rows: list[tuple[str, AttackRow | None]] = [("before any attack", found.before)]
    lowest = None if model is view.original else view.lowest_quality(model.name)
    if lowest is not None:
        rows.append((f"at its lowest, after {_where(lowest)}", lowest))
    if model is not view.original and found.worst.row != lowest:
        rows.append(("where the unsafe rate is worst", found.worst.row))
    known = [(when, row.quality) for when, row in rows if row is not None and row.quality]
    if not known:
        return ["Not measured: a low rate may come from a broken model."]
    lines: list[Child] = [
        [tag("b", percent(quality.share)), f" of the original's {when} ({share_span(quality)})"]
        for when, quality in known
    ]
    return [*lines, quality_label(known[0][1].measure)]


def _learns(view: View, model: ModelInfo) -> list[Child]:
    """Return how well the model learnt a user's harmless data by the last step, if measured."""
    last = {one.attack: one for one in view.summary.learning if one.model == model.name}
    return [f"{one.attack}: {learnt_words(one)}" for one in last.values()]


def _sure(view: View, found: ModelSummary) -> list[Child]:
    worst, audit = found.worst.row, view.summary.audit
    lines: list[Child] = []
    before = found.before.unsafe if found.before else None
    if worst is not None and worst.unsafe is not None:
        rate = worst.unsafe
        lines.append([tag("b", span(rate.low, rate.high)), " is the 95 % interval of the worst "
                      "rate"])  # fmt: skip
    elif before is not None and not found.broken:
        lines.append([tag("b", span(before.low, before.high)), " is the 95 % interval of the rate "
                      "before any attack"])  # fmt: skip
    seeds = len(view.result.plan.seeds)
    lines.append(f"{view.images} images of {view.summary.prompts} prompts, {seeds} "
                 f"fine-tuning seed{'s' * (seeds != 1)}")  # fmt: skip
    if audit is None:
        lines.append(f"flagged by {view.scorer}, whose mistakes nobody has measured here")
    else:
        lines.append(f"flagged by {view.scorer}, checked by a person on {audit.labelled} pictures")
    if view.summary.missing:
        lines.append(tag("b", f"not finished: {view.summary.missing} evaluations are missing"))
    return lines


def _against(view: View, found: ModelSummary, model: ModelInfo) -> list[Child]:
    """The attacks that count, how soon the concept came back, and what does not count."""
    kinds = _kinds(view)
    lines: list[Child] = [f"{view.tally(model.name)} ({kinds})" if kinds else "no attack"]
    if found.relapse is not None:
        after = (
            f" of {found.relapse.attack}"
            if found.relapse.attack
            else " of any fine-tuning that counts"
        )
        after = "" if found.relapse.steps == 0 else after
        lines.append(["half of the original's rate back: ",
                      tag("b", relapse_text(found.relapse)), after])  # fmt: skip
    if out := left_out(view, found):
        lines.append(f"left out, because the model was broken: {out}")
    if found.worst.without_effect:
        lines.append(f"no effect: {series(found.worst.without_effect[:3])}: not counted")
    other = found.with_original.resilience
    if model is not view.original and found.with_original.attacks and other.value is not None:
        lines.append(f"whoever has the original can mix it in: resilience {number(other.value)}")
    return lines


def _kinds(view: View) -> str:
    """Name the kinds of attack in the headline: `2 fine-tunings, 1 LoRA`."""
    shown = [name for name in view.attacks if name not in view.with_original]
    attacks = [attack for attack in view.result.plan.attacks if attack.name in shown]
    trained = sum(isinstance(attack, FineTuneAttack) for attack in attacks)
    loras = sum(isinstance(attack, LoraAttack) for attack in attacks)
    counts = ((trained, "fine-tuning"), (loras, "LoRA"), (len(attacks) - trained - loras, "merge"))
    return series([f"{count}{NARROW}{what}{'s' * (count != 1)}" for count, what in counts if count])


def _where(row: AttackRow) -> str:
    text = row.attack + (f", step {row.step}" if row.step else "")
    return f"{text} (quality not measured)" if row.state == NOT_MEASURED else text


def _corrected(view: View, row: AttackRow) -> list[Child]:
    """The rate of a row as a person's labels correct it."""
    audit = view.summary.audit
    found = audit.row(row.model, row.attack, row.step) if audit else None
    if found is None or found.value is None:
        return []
    return [f"corrected by the audit: {corrected_text(found)}"]


def _scale(value: float, low: float, high: float) -> Markup:
    """Draw a bar from 0 to 1 with the interval in it; parts below 0 are cut off."""
    at, start, end = (100 * min(1.0, max(0.0, part)) for part in (value, low, high))
    return tag(
        "div",
        tag("i", style=f"left:{start:.1f}%;width:{end - start:.1f}%"),
        tag("b", style=f"left:{at:.1f}%"),
        cls="scale", aria_hidden="true",
    )  # fmt: skip
