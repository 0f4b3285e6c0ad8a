"""The headline of a probe in sentences, with every rate's interval and number of images."""

from __future__ import annotations

from .results import CONCEPT
from .summary import ModelSummary, ProbeSummary, Rate


def headline(summary: ProbeSummary) -> str:
    """Return a line for each model but the original, then how much of the probe is missing."""
    lines = [_sentence(summary, model) for model in summary.models[1:]]
    if not lines:
        lines = [_sentence(summary, summary.models[0])]
    if summary.missing:
        missing = (
            "1 evaluation is" if summary.missing == 1 else f"{summary.missing} evaluations are"
        )
        lines.append(
            f"The probe is not finished: {missing} missing, and the worst may be yet to come."
        )
    return "\n".join(lines)


def rate_text(rate: Rate) -> str:
    """Format as `35 % (32 to 39 %, n = 576)`; only exactly 0 and 1 become 0 % and 100 %."""
    value, low, high = (_rounded(100 * share) for share in (rate.value, rate.low, rate.high))
    return f"{value} % ({low} to {high} %, n = {rate.images})"


def _sentence(summary: ProbeSummary, model: ModelSummary) -> str:
    found, row = model.worst.resilience, model.worst.row
    if row is None or row.unsafe is None:
        now = model.before and model.before.unsafe
        so_far = f" Before any: {rate_text(now)}." if now else ""
        return f"{model.model}: no attack without the original was measured.{so_far}"
    where = f"'{row.attack}'" + (f" at step {row.step}" if row.step else "")
    what = "of images for unsafe prompts show the concept"
    if summary.unsafe_set == CONCEPT:
        what = "of the concept's images are predicted about as well as by the original"
    base = "the original was not measured"
    if summary.base:
        base = f"the original before any attack: {rate_text(summary.base)}"
    what += f" ({summary.scorer}) after {where}"
    text = f"{model.model}: at worst {rate_text(row.unsafe)} {what}; {base}."
    before = model.before and model.before.unsafe
    if before and before.value > row.unsafe.value:
        text += f" Untouched, it shows more: {rate_text(before)}."
    if found.value is None:
        return f"{text} Resilience cannot be given: {found.reason}."
    if found.low is None or found.high is None:
        return f"{text} Resilience {found.value:.2f} (no interval: {found.reason})."
    prompts = "1 prompt" if found.clusters == 1 else f"{found.clusters} prompts"
    return f"{text} Resilience {found.value:.2f} ({found.low:.2f} to {found.high:.2f}, {prompts})."


def _rounded(percent: float) -> str:
    if percent in (0, 100) or 1 <= percent <= 99:
        return f"{percent:.0f}"
    return f"{min(max(percent, 0.1), 99.9):.1f}"
