"""The headline of a probe in sentences, with every rate's interval and number of images."""

from __future__ import annotations

from collections.abc import Sequence

from ..statistics.correction import Corrected
from .quality import AGREEMENT, CLIP, SCORER
from .results import CONCEPT
from .summary import (
    BROKEN,
    NOT_MEASURED,
    AttackRow,
    Headline,
    ModelSummary,
    ProbeSummary,
    Quality,
    Rate,
    Relapse,
)

_MOST_NAMES = 3


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


def quality_label(measure: str) -> str:
    """Name a measure of benign quality: `harmless pictures drawn right (demo-benign)`."""
    if measure.startswith(SCORER):
        return f"harmless pictures drawn right ({measure.removeprefix(SCORER)})"
    names = {CLIP: "CLIP score of harmless pictures", AGREEMENT: "agreement with the original"}
    return names.get(measure, "benign quality")


def quality_text(quality: Quality) -> str:
    """Format as `95 % (84 to 99 %, n = 32)`, or as a plain figure where it is not a share."""
    if quality.low is not None and quality.high is not None:
        value, low, high = (
            _rounded(100 * part) for part in (quality.value, quality.low, quality.high)
        )
        return f"{value} % ({low} to {high} %, n = {quality.images})"
    return f"{quality.value:.3g}"


def relapse_text(found: Relapse) -> str:
    """Format as `120 steps (90 to 160)`, `from the start`, or `not within 200 steps`."""
    if found.steps is None and not found.within:
        return "broken at every step"
    if found.steps is None:
        text = f"not within {found.within} step{'s' * (found.within != 1)}"
        return text if found.low is None else f"{text} (from {found.low:.0f})"
    end = f"more than {found.within}" if found.high is None else f"{found.high:.0f}"
    if found.steps == 0:
        known = found.high == 0 or not found.within
        return "from the start" if known else f"from the start (0 to {end})"
    low = "0" if not found.low else f"{found.low:.0f}"
    return f"{found.steps:.0f} step{'s' * (round(found.steps) != 1)} ({low} to {end})"


def _sentence(summary: ProbeSummary, model: ModelSummary) -> str:
    found, row = model.worst.resilience, model.worst.row
    if model.broken:
        return f"{_broken(summary, model)} {_rates(summary, model)}".rstrip()
    if row is None or row.unsafe is None:
        now = model.before and model.before.unsafe
        so_far = f" Before any: {rate_text(now)}." if now else ""
        if model.worst.broken or model.worst.without_effect:
            why = f"resilience cannot be given: {found.reason}."
            return f"{model.model}: {why}{so_far}{_excluded(summary, model)}"
        return f"{model.model}: no attack without the original was measured.{so_far}"
    text = f"{model.model}: at worst {_worst(summary, model)}."
    before = model.before and model.before.unsafe
    if before and before.value > row.unsafe.value:
        text += f" Untouched, it shows more: {rate_text(before)}."
    if found.value is None:
        text += f" Resilience cannot be given: {found.reason}."
    elif found.low is None or found.high is None:
        text += f" Resilience {found.value:.2f} (no interval: {found.reason})."
    else:
        prompts = "1 prompt" if found.clusters == 1 else f"{found.clusters} prompts"
        text += f" Resilience {found.value:.2f} ({found.low:.2f} to {found.high:.2f}, {prompts})."
    text += _way(summary, model.model) + _audited(summary, model.model)
    text += _relapsed(model.relapse) + _working(summary, model, row) + _excluded(summary, model)
    return text


def _worst(summary: ProbeSummary, model: ModelSummary) -> str:
    """Return the worst rate, by whom, after what, and the original's."""
    row = model.worst.row
    assert row is not None and row.unsafe is not None
    what = "of images for unsafe prompts show the concept"
    if summary.unsafe_set == CONCEPT:
        what = "of the concept's images are predicted about as well as by the original"
    base = "the original was not measured"
    if summary.base:
        base = f"the original before any attack: {rate_text(summary.base)}"
    tied = f", alike after {_listed(model.worst.tied)}" if model.worst.tied else ""
    by = f"(scorer: {summary.scorer})"
    where = f"{_where(row)}{tied}" if row.unsafe.flagged else none_words(model.worst)
    return f"{rate_text(row.unsafe)} {what} {by} after {where}; {base}"


def none_words(found: Headline) -> str:
    """Say after which attacks a worst rate of 0 was found: after all, so none of them is worst."""
    return "the one attack that counts" if found.attacks == 1 else "any attack that counts"


def _way(summary: ProbeSummary, name: str) -> str:
    """Return how far the model is on the way to the oracle."""
    found = summary.way(name)
    if found is None or found.value is None:
        return ""
    known = found.low is not None and found.high is not None
    interval = f" ({found.low:.2f} to {found.high:.2f})" if known else ""
    return (
        f" {found.value:.2f}{interval} of the way from '{found.reference}' to the oracle "
        f"'{found.oracle}' after '{found.attack}'."
    )


def _audited(summary: ProbeSummary, name: str) -> str:
    """Return the worst rate and the resilience as a person's labels correct them."""
    audit = summary.audit
    found = audit.model(name) if audit else None
    if audit is None or found is None or found.worst is None or found.worst.value is None:
        return ""
    text = f" Corrected by the detector's mistakes on {audit.labelled} labelled pictures: "
    text += f"{_percent(found.worst.value)} at worst{_percent_range(found.worst)}"
    kept = found.resilience
    if kept is not None and kept.value is not None:
        text += f", resilience {kept.value:.2f}"
        if kept.low is not None and kept.high is not None:
            text += f" ({kept.low:.2f} to {kept.high:.2f})"
    return f"{text}."


def _percent_range(found: Corrected) -> str:
    if found.low is None or found.high is None:
        return ""
    return f" ({_rounded(100 * found.low)} to {_rounded(100 * found.high)} %)"


def _broken(summary: ProbeSummary, model: ModelSummary) -> str:
    quality = model.before.quality if model.before else None
    assert quality is not None
    return (
        f"{model.model}: BROKEN before any attack: {quality_label(quality.measure)} "
        f"{quality_text(quality)}, {_percent(quality.share)} of the original's, and less than "
        f"{_percent(summary.counting.least_quality)} counts as broken. A model that draws nothing "
        "shows nothing unsafe either: it has no resilience here."
    )


def _rates(summary: ProbeSummary, model: ModelSummary) -> str:
    """Return a broken model's rates, which still are rates."""
    now, row = model.before and model.before.unsafe, model.worst.row or model.worst.above
    text = f"Its unsafe rate: {rate_text(now)} untouched" if now else ""
    if row is not None and row.unsafe is not None:
        text += (
            f"{'; ' if text else 'Its unsafe rate: '}{rate_text(row.unsafe)} after {_where(row)}"
        )
        text += f" ({row.state})"
    return f"{text}." if text else ""


def _working(summary: ProbeSummary, model: ModelSummary, row: AttackRow) -> str:
    """Say how well the model works where it is worst, and where it works least of what counts."""
    if row.state == NOT_MEASURED or row.quality is None:
        return " Benign quality was not measured: a low rate may come from a broken model."
    now = model.before and model.before.quality
    untouched = f"; untouched: {quality_text(now)}" if now else ""
    kept = (
        "Other pictures have changed there, though its predictions hardly have"
        if row.quality.by_predictions
        else "Other things are still drawn right there"
    )
    return (
        f" {kept}: {quality_label(row.quality.measure)} "
        f"{quality_text(row.quality)}, {_percent(row.quality.share)} of the original's{untouched}."
        f"{_lowest(summary, model, row.quality)}"
    )


def _lowest(summary: ProbeSummary, model: ModelSummary, here: Quality) -> str:
    """Return the lowest benign quality over the steps that count, where another step has it."""
    row = summary.lowest_quality(model.model)
    if row is None or row.quality is None or row.quality.share >= here.share:
        return " No step that counts has a lower one."
    return (
        f" Its lowest over all steps that count: {quality_text(row.quality)}, "
        f"{_percent(row.quality.share)} of the original's, after {_where(row)}."
    )


def _relapsed(found: Relapse | None) -> str:
    if found is None:
        return ""
    if found.steps is None:
        back = relapse_text(found).replace("not within", "not back within", 1)
        return f" Half of the original's rate is {back} of any fine-tuning that counts."
    if found.steps == 0:
        return f" Half of the original's rate is there {relapse_text(found)}."
    return f" Half of the original's rate is back after {relapse_text(found)} of '{found.attack}'."


def _excluded(summary: ProbeSummary, model: ModelSummary) -> str:
    found, text = model.worst, ""
    counted = {row.attack for row in summary.rows if row.model == model.model and row.counts}
    wholly = [name for name in found.broken if name not in counted]
    partly = [name for name in found.broken if name in counted]
    if wholly:
        text += f" Broken at every evaluated step of {_listed(wholly)}, which does not count."
    if partly:
        text += f" Broken at a step of {_listed(partly)}, which does not count."
    if found.without_effect:
        text += f" No effect even on the original: {_listed(found.without_effect)}; not counted."
    if found.above is not None and found.above.unsafe is not None and found.above.state == BROKEN:
        text += f" In that broken state it shows more: {rate_text(found.above.unsafe)} after "
        text += f"{_where(found.above)}."
    return text


def _where(row: AttackRow) -> str:
    return f"'{row.attack}'" + (f" at step {row.step}" if row.step else "")


def _listed(names: Sequence[str]) -> str:
    shown = [f"'{name}'" for name in names[:_MOST_NAMES]]
    if len(names) > _MOST_NAMES:
        shown.append(f"{len(names) - _MOST_NAMES} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _percent(share: float) -> str:
    return f"{_rounded(100 * share)} %"


def _rounded(percent: float) -> str:
    if percent in (0, 100) or 1 <= percent <= 99 or percent > 100:
        return str(int(percent + 0.5 + 1e-9))  # halves upwards: 12.5 is not 12
    return f"{min(max(percent, 0.1), 99.9):.1f}"
