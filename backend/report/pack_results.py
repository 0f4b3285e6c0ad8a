"""Writes `results.json` of a pack: the figures of a report for other programs.

Its form is fixed by `results.schema.json`, which every pack holds. Fields may be added without
raising `schema`; a reader refuses a higher number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.metadata import versions
from ..probe.results import ModelInfo, ProbeResult
from ..probe.summary import AttackRow, Headline, ModelSummary, ProbeSummary, Rate
from ..run.json_lines import finite
from .limits import ABUSE, limits
from .pack_left_out import changed_counting, left_out
from .pack_pictures import PackedPictures

SCHEMA = 1
KIND = "resalign pack"
SCHEMA_NAME = "results.schema.json"
SCHEMA_FILE = Path(__file__).with_name(SCHEMA_NAME)
DIGESTS = (
    "SHA-256 over the picture's pixels as drawn, 8 bits each: all of red, row by row from the top "
    "left, then all of green, then all of blue; of its hexadecimal form the first 16 digits. Not "
    "over the bytes of the PNG file. A picture that was blurred keeps the digest of the original, "
    "with which a replay compares"
)


def pack_results(
    result: ProbeResult,
    summary: ProbeSummary,
    model: str,
    *,
    license: str,  # noqa: A002
    plan_sha256: str,
    released: Mapping[str, Any] | None,
    pictures: PackedPictures,
    signed: bool,
    test_run: bool = False,
) -> str:
    """Make the text of `results.json`.

    license: of the base, "" if unknown. plan_sha256: of the pack's `probe.json`. released: name
    and SHA-256 of the file that is published, where it was given. signed: with the publisher's key.
    test_run: it made the model.
    """
    own = summary.model(model)
    infos = {info.name: info for info in result.models}
    record = {
        "$schema": SCHEMA_NAME,
        "schema": SCHEMA,
        "kind": KIND,
        "complete": result.complete,
        "missing_evaluations": summary.missing,
        "model": {**_checkpoint(infos[model]), "broken": own.broken, "test_run": test_run},
        "original": _checkpoint(result.models[0]),
        "checkpoints": [_checkpoint(info) for info in result.models],
        "released": released,
        "signed": signed,
        "pictures": {
            "kept": pictures.kept,
            "files": len(pictures.files),
            "blurred": pictures.blurred,
            "flagged_not_blurred": pictures.plain,
            "lost": len(pictures.lost),
            "digests": DIGESTS,
        },
        "license_of_base": license or None,
        "concepts": [concept.name for concept in result.plan.concepts],
        "scorer": summary.scorer,
        "prompts": summary.prompts,
        "seeds": {
            "fine_tuning": list(result.plan.seeds),
            "pictures": result.plan.generation.seed,
        },
        "versions": {
            "measured_with": dict(sorted(result.versions.items())),
            "packed_with": versions().get("resalign", "unknown"),
        },
        "plan_sha256": plan_sha256,
        "quality_measure": summary.quality_measure or None,
        "counting": asdict(summary.counting),
        "counting_changed": changed_counting(summary.counting),
        "headline": _headline(summary, own),
        "left_out": _left_out(summary, model),
        "rows": [_row(row) for row in summary.rows],
        "audit": _audit(summary),
        "learning": [asdict(one) for one in summary.learning],
        "ways": [asdict(one) for one in summary.ways],
        "not_tested": [*limits(result, kind=summary.unsafe_set, scorer=summary.scorer), ABUSE],
        "tests_for_abuse_material": False,
        "warnings": list(result.warnings),
    }
    return json.dumps(finite(record), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _checkpoint(info: ModelInfo) -> dict[str, Any]:
    """Describe a checkpoint as the report names it; null: not recorded."""
    return {"name": info.name} | {
        key: getattr(info, key) or None for key in ("source", "sha256", "family", "method")
    }


def _headline(summary: ProbeSummary, own: ModelSummary) -> dict[str, Any]:
    return {
        "base_rate": _rate(summary.base),
        "before": _row(own.before) if own.before else None,
        **_worst(own.worst),
        "relapse": asdict(own.relapse) if own.relapse else None,
    }


def _left_out(summary: ProbeSummary, model: str) -> dict[str, Any]:
    found = left_out(summary, model)
    return {
        "attacks": found.attacks,
        "wholly": [{"attack": name, "why": why} for name, why in found.wholly],
        "partly": [{"attack": name, "why": why} for name, why in found.partly],
        "highest": _row(found.highest) if found.highest else None,
    }


def _audit(summary: ProbeSummary) -> dict[str, Any] | None:
    """Return what a person's labels say of the detector, and the corrected rates."""
    return asdict(summary.audit) if summary.audit else None


def _worst(found: Headline) -> dict[str, Any]:
    return {
        "worst": _row(found.row) if found.row else None,
        "resilience": {
            "value": found.resilience.value,
            "low": found.resilience.low,
            "high": found.resilience.high,
            "reason": found.resilience.reason or None,
        },
        "attacks": found.attacks,
        "broken_after": list(found.broken),
        "without_effect": list(found.without_effect),
    }


def _row(row: AttackRow) -> dict[str, Any]:
    return {
        "model": row.model,
        "attack": row.attack,
        "kind": row.kind,
        "step": row.step,
        "original_at_hand": row.original_at_hand,
        "counts": row.counts,
        "state": row.state,
        "had_effect": row.had_effect,
        "weight_change": row.weight_change,
        "unsafe": _rate(row.unsafe),
        "quality": asdict(row.quality) if row.quality else None,
    }


def _rate(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else {**asdict(rate), "seeds": list(rate.seeds)}
