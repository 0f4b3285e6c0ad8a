"""The section on a person's labels of the detector's pictures, for page and Markdown."""

from __future__ import annotations

from ..probe.audit_figures import AuditSummary, CorrectedModel
from ..probe.summary import AttackRow
from ..statistics.correction import Corrected
from .markdown_text import escape
from .markdown_text import table as markdown_table
from .markup import Markup, table, tag
from .view import View
from .words import number, percent, span

_HEADS = ("model", "when", "as the detector counts", "corrected", "95 % interval")
METHOD = (
    "The corrected rate is (p + specificity − 1) / (sensitivity + specificity − 1) (Rogan and "
    "Gladen, 1978). Its interval covers the audit and the prompts, and it takes the detector to "
    "err alike in every model and after every attack."
)


def audit_section(view: View) -> Markup | None:
    found = view.summary.audit
    if found is None:
        return None
    return tag(
        "section",
        tag("h2", "Audit by a person", id="audit"),
        tag("p", audit_words(found)),
        table(_COUNTS, _counts(found), caption="Labels"),
        [tag("p", METHOD),
         table(_HEADS, _rows(view, found), caption="Corrected rates", labels=_HEADS[1:])]
        if not found.reason else tag("p", f"Rates are not corrected: {found.reason}."),
    )  # fmt: skip


def audit_markdown(view: View) -> list[str]:
    """Write the section as Markdown lines."""
    found = view.summary.audit
    if found is None:
        return []
    parts = ["### Audit by a person", escape(audit_words(found)),
             markdown_table(_COUNTS, _counts(found))]  # fmt: skip
    if found.reason:
        return [*parts, f"Rates are not corrected: {escape(found.reason)}."]
    rows = [list(map(escape, row)) for row in _rows(view, found)]
    return [*parts, METHOD, markdown_table(_HEADS, rows)]


def audit_words(found: AuditSummary) -> str:
    """Say how much was labelled, and how often the detector was right."""
    unsure = f"; {found.unsure} more could not be told" if found.unsure else ""
    text = (
        f"A person labelled {found.labelled} of {found.pictures} pictures without knowing their "
        f"model or the verdict of {found.scorer}{unsure}. "
    )
    sensitivity, specificity = found.sensitivity, found.specificity
    if sensitivity.value is None or specificity.value is None:
        return text.rstrip()
    return text + (
        f"{found.scorer} flags {corrected_text(sensitivity)} of the pictures that show the concept "
        f"(sensitivity), and leaves {corrected_text(specificity)} of the others alone "
        "(specificity)."
    )


def corrected_text(found: Corrected) -> str:
    """Format as `12.0 % (8.0 to 17.5 %)`."""
    if found.value is None:
        return "not given"
    if found.low is None or found.high is None:
        return f"{percent(found.value)} (no interval: too few labels)"
    return f"{percent(found.value)} ({span(found.low, found.high)})"


_COUNTS = ("detector", "person: shows it", "person: does not")


def _counts(found: AuditSummary) -> list[list[str]]:
    return [
        ["flagged", str(found.hits), str(found.false_alarms)],
        ["not flagged", str(found.misses), str(found.clear)],
    ]


def _rows(view: View, found: AuditSummary) -> list[list[str]]:
    rows = []
    for info in view.models:
        own, model = view.of(info.name), found.model(info.name)
        if model is None:
            continue
        worst = own.worst.row
        rows += _row(info.name, "before any attack", own.before, model.before)
        if worst is not None:
            at = f", step {worst.step}" if worst.step else ""
            rows += _row(info.name, f"worst: {worst.attack}{at}", worst, model.worst)
        if info is not view.original:
            rows += _resilience(view, model)
    return rows


def _row(
    name: str, when: str, row: AttackRow | None, corrected: Corrected | None
) -> list[list[str]]:
    if row is None or row.unsafe is None or corrected is None or corrected.value is None:
        return []
    return [[name, when, percent(row.unsafe.value), percent(corrected.value), _span(corrected)]]


def _resilience(view: View, model: CorrectedModel) -> list[list[str]]:
    kept, observed = model.resilience, view.of(model.model).worst.resilience.value
    if kept is None or kept.value is None or observed is None:
        return []
    known = kept.low is not None and kept.high is not None
    interval = f"{number(kept.low)} to {number(kept.high)}" if known else "no interval"
    return [[model.model, "resilience", number(observed), number(kept.value), interval]]


def _span(found: Corrected) -> str:
    return "no interval" if found.low is None or found.high is None else span(found.low, found.high)
