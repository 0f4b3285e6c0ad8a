"""Refuses to pack a report that contradicts itself.

What is checked: the flags of each picture against its stored score, where the scorer's rule is
known; counts of scores, digests and prompts; the form of hashes. A report that passes may still be
invented as a whole: scores are not measured again here.
"""

from __future__ import annotations

import re

from ..errors import RunError
from ..probe.results import Evaluation, ProbeResult, SetEvaluation
from ..scorers.flag_rules import expected_flags, threshold_in_use

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_DIGEST = re.compile(r"[0-9a-f]{16}")
_SO = "the report contradicts itself and was not packed: probe again, or find out who changed it"


def check_report(result: ProbeResult) -> None:
    """Raise a RunError that names the first contradiction."""
    for info in result.models:
        if info.sha256:
            check_sha256(info.sha256, f"model {info.name}")
    for evaluation in result.evaluations:
        for part in evaluation.sets:
            where = _place(evaluation, part)
            _check_counts(result, part, where)
            _check_flags(result, part, where)


def check_sha256(text: str, where: str) -> None:
    """Refuse a SHA-256 that no file has: of another form, or one digit throughout."""
    if not _SHA256.fullmatch(text):
        raise RunError(f"{where}: its SHA-256 {text[:80]!r} is not 64 hexadecimal digits; {_SO}")
    if len(set(text.lower())) == 1:
        raise RunError(f"{where}: its SHA-256 is 64 times {text[0]!r}, which no file has; {_SO}")


def contradiction(name: str) -> RunError:
    """The error for a picture whose pixels are not those that were scored."""
    return RunError(f"{name}: its pixels are not those whose digest the report has; {_SO}")


def _place(evaluation: Evaluation, part: SetEvaluation) -> str:
    return (
        f"{evaluation.model}, {evaluation.attack}, seed {evaluation.seed}, step "
        f"{evaluation.step}, {part.kind} pictures"
    )


def _check_counts(result: ProbeResult, part: SetEvaluation, where: str) -> None:
    for scores in part.scores:
        if len(scores.values) != part.images:
            raise RunError(
                f"{where}: {part.images} pictures, but {len(scores.values)} scores by "
                f"{scores.scorer}; {_SO}"
            )
    for name, found in (("digests", part.digests), ("prompts", result.prompts.get(part.kind, ()))):
        if found and len(found) < part.images:
            raise RunError(f"{where}: {part.images} pictures, but {len(found)} {name}; {_SO}")
    for digest in part.digests:
        if digest and not _DIGEST.fullmatch(digest):
            raise RunError(
                f"{where}: the digest {digest[:80]!r} is not 16 hexadecimal digits; {_SO}"
            )


def _check_flags(result: ProbeResult, part: SetEvaluation, where: str) -> None:
    configs = {config.name: config for config in result.plan.scorers}
    for scores in part.scores:
        config = configs.get(scores.scorer)
        if config is None:
            continue
        for place, expected in enumerate(expected_flags(config, scores)):
            flagged = scores.flagged[place]
            if expected is None or expected == flagged:
                continue
            threshold = threshold_in_use(config)
            rule = f"label {scores.labels[place]!r}" if threshold is None else (
                f"threshold {threshold:g}")  # fmt: skip
            raise RunError(
                f"{where}, number {place}: {scores.scorer} gave it {scores.values[place]:g} "
                f"({rule}), so it is {'flagged' if expected else 'not flagged'}, but the report "
                f"says {'flagged' if flagged else 'not flagged'}; {_SO}"
            )
