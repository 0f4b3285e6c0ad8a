"""The evidence of a pack's card: the published model's figures, as rows of a table."""

from __future__ import annotations

from ..probe.headline import none_words, rate_text, relapse_text
from ..probe.results import CONCEPT
from .audit_section import audit_words, corrected_text
from .counting_words import quality_words
from .learning_section import learnt_words
from .markdown_text import code_text, escape
from .pack_left_out import counting_row, left_out, left_out_words
from .view import View
from .words import number, percent


def measure_words(view: View) -> str:
    what = "pictures that were flagged"
    if view.kind == CONCEPT:
        what = "the concept's pictures that the model predicts about as well as the original"
    text = f"Rates are shares of {what} (`{code_text(view.scorer)}`), with 95 % intervals."
    if view.images > view.summary.prompts:
        text += (
            " They take prompts as observations, as a prompt's images resemble one another: they "
            "are wider than n images of as many prompts would give."
        )
    return text


def evidence(view: View, model: str) -> list[tuple[str, str]]:
    own, base = view.of(model), view.summary.base
    before, worst, kept = own.before, own.worst.row, own.worst.resilience
    rows = [
        ("Original, before any attack", rate_text(base) if base else ""),
        ("This model, before any attack", rate_text(before.unsafe) if before and before.unsafe
         else ""),
    ]  # fmt: skip
    if worst and worst.unsafe:
        at = f", step {worst.step}" if worst.step else ""
        one = own.worst.attacks == 1
        of = "the one attack that counts" if one else f"{own.worst.attacks} attacks that count"
        name = f"Worst of {of}: {worst.attack}{at}"
        if not worst.unsafe.flagged:
            name = f"Worst, after {none_words(own.worst)}"
        rows.append((name, rate_text(worst.unsafe)))
    else:
        rows.append(("Worst attack that counts", f"none: {kept.reason}" if kept.reason else ""))
    if (out := left_out(view.summary, model)).attacks:
        rows.append(("Left out of the worst case", left_out_words(out)))
    if (other := own.with_original.row) and other.unsafe:
        rows.append((f"With the original at hand, not in the worst case: {other.attack}",
                     rate_text(other.unsafe)))  # fmt: skip
    rows.append(("Rules of what counts", counting_row(view.summary.counting)))
    interval = ""
    if kept.low is not None and kept.high is not None:
        interval = f" ({number(kept.low)} to {number(kept.high)})"
    value = f"not given: {kept.reason}" if kept.value is None else number(kept.value) + interval
    rows.append(("Resilience", value))
    rows.append(("Half of the original's rate back", relapse_text(own.relapse) if own.relapse
                 else ""))  # fmt: skip
    for one in view.summary.agreements:
        agree = (one.both + one.neither) / max(1, one.both + one.neither + one.only_first
                                               + one.only_second)  # fmt: skip
        agreement = f"{percent(agree)} of the pictures"
        if one.kappa is not None:
            known = one.low is not None and one.high is not None
            span = f" ({number(one.low)} to {number(one.high)})" if known else ""
            agreement += f", Cohen's kappa {number(one.kappa)}{span}"
        rows.append((f"{one.first} and {one.second} agree on", agreement))
    if view.summary.audit:
        rows.append(("Audit by a person", audit_words(view.summary.audit)))
        rows.append(("Worst rate, corrected by the audit", _corrected(view, model)))
    for one in {one.attack: one for one in view.summary.learning if one.model == model}.values():
        rows.append((f"Still learns harmless data: {one.attack}", learnt_words(one)))
    if way := view.summary.way(model):
        rows.append((f"Way from {way.reference} to {way.oracle}, after {way.attack}",
                     number(way.value)))  # fmt: skip
    lowest = view.lowest_quality(model)
    whens = [("before any attack", before), ("in the worst case", worst)]
    if lowest is not None and lowest != worst:
        at = f", step {lowest.step}" if lowest.step else ""
        whens.append((f"at its lowest of what counts: {lowest.attack}{at}", lowest))
    for when, row in whens:
        found = row.quality if row else None
        text = quality_words(row) if found and row else ""
        rows.append((f"Benign quality {when}", text))
    return [(escape(key), escape(text) or "not measured") for key, text in rows]


def _corrected(view: View, model: str) -> str:
    audit = view.summary.audit
    found = audit.model(model) if audit else None
    if audit is None or found is None or found.worst is None:
        return ""
    return f"not given: {audit.reason}" if audit.reason else corrected_text(found.worst)
