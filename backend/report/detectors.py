"""The section with the detectors: what each counts as unsafe, its rates, and their agreement."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan.measurement import ScorerConfig
from ..probe.summary import Agreement, DetectorRates, Rate
from ..scorers.registry import policy_of
from .markdown_text import escape
from .markdown_text import table as markdown_table
from .markup import Markup, table, tag
from .view import View
from .words import KINDS, number, percent, span

INTRODUCTION = (
    "Each detector stands for a policy of its own. Where they disagree, a rate depends on whose "
    "policy you follow: look at the pictures on which they differ."
)
_RATES = ("detector", "counts as unsafe", "scores", "model", "before", "worst that counts", "after")
_PAIRS = ("detectors", "both flag", "only the first", "only the second", "neither",
          "Cohen's kappa", "95 % interval")  # fmt: skip
_KAPPA = (
    "Agreement on the same pictures of unsafe prompts, over all models, attacks and steps. Kappa "
    "is 1 where they always agree, 0 where they agree no more than by chance; the interval "
    "resamples prompts."
)


def detector_section(view: View) -> Markup | None:
    """Build the section; None with one detector."""
    if not view.summary.detectors:
        return None
    pairs = [_pair(one) for one in view.summary.agreements]
    return tag(
        "section",
        tag("h2", "Detectors", id="detectors"),
        tag("p", INTRODUCTION),
        table(
            _RATES,
            [[cells[0], tag("td", cells[1], cls="text"), *cells[2:]] for cells in _rates(view)],
            caption="Rates by detector",
            cls="wrap",
            labels=_RATES[1:],
        ),
        [tag("p", _KAPPA), table(_PAIRS, pairs, caption="Agreement", labels=_PAIRS[1:])]
        if pairs
        else None,
    )


def detector_markdown(view: View) -> list[str]:
    """Write the section on detectors as Markdown lines."""
    if not view.summary.detectors:
        return []
    parts = ["### Detectors", INTRODUCTION]
    parts.append(markdown_table(_RATES, [list(map(escape, cells)) for cells in _rates(view)]))
    if view.summary.agreements:
        pairs = [list(map(escape, _pair(one))) for one in view.summary.agreements]
        parts += [_KAPPA, markdown_table(_PAIRS, pairs)]
    return parts


def policy_words(scorer: ScorerConfig) -> str:
    """Say what a scorer counts as unsafe: its own description, labels and threshold."""
    said = [policy_of(scorer.name) or "its own policy: see the package that provides it"]
    if scorer.labels:
        said.append("labels " + ", ".join(scorer.labels))
    if scorer.threshold is not None:
        said.append(f"threshold {scorer.threshold:g}")
    return "; ".join(said)


def _rates(view: View) -> list[list[str]]:
    policies = {scorer.name: policy_words(scorer) for scorer in view.result.plan.scorers}
    return [_row(one, policies[one.scorer]) for one in view.summary.detectors]


def _row(one: DetectorRates, policy: str) -> list[str]:
    after = one.attack + (f", step {one.step}" if one.step else "")
    rates = [_rate(one.before), _rate(one.worst)]
    return [one.scorer, policy, KINDS.get(one.kind, one.kind), one.model, *rates, after or "–"]


def _rate(rate: Rate | None) -> str:
    return f"{percent(rate.value)} ({span(rate.low, rate.high)})" if rate else "not measured"


def _pair(one: Agreement) -> Sequence[str]:
    counts = (one.both, one.only_first, one.only_second, one.neither)
    if one.kappa is None:
        return [f"{one.first}, {one.second}", *map(str, counts), "–", "one flags all or none"]
    interval = f"{number(one.low)} to {number(one.high)}"
    return [f"{one.first}, {one.second}", *map(str, counts), number(one.kappa), interval]
