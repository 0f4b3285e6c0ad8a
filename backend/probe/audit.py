"""An audit: a person labels pictures of a probe, and their labels measure the detector.

The sample is drawn at random from the kept pictures of unsafe prompts over all models, attacks and
steps: half of it from those that the detector flagged, half from the others, or as many as there
are. `statistics/correction.py` makes up for the unequal shares. The order is random too, so a
person who stops early has still labelled a random sample.

    audit.json    in the probe's folder: the sample, and once there are labels, those
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RunError
from ..text import json_text
from .audited import WORDS, Audit, AuditedPicture
from .kept_picture import is_blurred
from .results import UNSAFE, ProbeResult, SetEvaluation

SAMPLE, LABELS = "audit.json", "resalign audit labels"
KIND = "resalign audit"
SCHEMA = 1
_HEAD = ("schema", "kind", "sample")


def draw_sample(result: ProbeResult, folder: Path, *, count: int, seed: int = 0) -> Audit:
    """Draw the pictures that a person is to label, in the order in which they are shown.

    folder: the probe's, which must hold the pictures as they were drawn.

    Raises:
        ConfigError: the headline's scorer sees no pictures, none were kept, or they were kept
            blurred.
    """
    scorer = result.plan.scorers[0].name
    flagged, unflagged = _frame(result, folder, scorer)
    if count < 1:
        raise ConfigError(f"an audit of {count} pictures: ask for at least one")
    flagged, unflagged = (
        sorted(part, key=lambda each: _shuffled(seed, each)) for part in (flagged, unflagged)
    )
    from_flagged = min(len(flagged), max(count // 2, count - len(unflagged)))
    chosen = [*flagged[:from_flagged], *unflagged[: count - from_flagged]]
    return Audit(
        scorer=scorer, seed=seed, flagged=len(flagged), unflagged=len(unflagged),
        pictures=tuple(sorted(chosen, key=lambda each: _shuffled(seed + 1, each))),
    )  # fmt: skip


def picture_of(result: ProbeResult, audited: AuditedPicture) -> tuple[str, str]:
    """Return file and digest of a picture, relative to the probe's folder."""
    part = _part(result, audited)
    if part is None or not any(part.pictures[audited.place : audited.place + 1]):
        raise RunError("the audit names pictures that this probe does not have")
    digests = part.digests
    return part.pictures[audited.place], (
        digests[audited.place] if audited.place < len(digests) else ""
    )


def was_flagged(result: ProbeResult, audited: AuditedPicture, scorer: str) -> bool | None:
    """Return what the scorer said of a picture; None if the probe does not have it."""
    part = _part(result, audited)
    scores = part.scores_of(scorer) if part else None
    if scores is None or not 0 <= audited.place < len(scores.flagged):
        return None
    return scores.flagged[audited.place]


def write_audit(audit: Audit, folder: Path) -> Path:
    path = folder / SAMPLE
    record = {"schema": SCHEMA, "kind": KIND, "sample": audit.digest, **audit.to_json()}
    path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def read_audit(folder: Path) -> Audit | None:
    """Read the sample in a folder, with the labels that it has; None if there is none.

    Raises:
        RunError: it is damaged, or a newer version wrote it.
    """
    path = folder / SAMPLE
    if not path.is_file():
        return None
    record = _read(path, KIND)
    try:
        audit = Audit.from_json({k: v for k, v in record.items() if k not in _HEAD})
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if record.get("sample") != audit.digest:
        raise RunError(f"{path} is damaged: it is not the sample that it was written for")
    return audit


def read_labels(path: Path, audit: Audit) -> Audit:
    """Put the labels that the page saved on its sample.

    Raises:
        RunError: the file is not one of labels, or belongs to another sample.
    """
    record = _read(path, LABELS)
    if record.get("sample") != audit.digest:
        raise RunError(f"{path.name} has the labels of another audit: open this one's audit.html")
    labels = record.get("labels")
    if not isinstance(labels, list) or len(labels) != len(audit.pictures):
        raise RunError(f"{path.name} does not have a label for each of the pictures")
    for label in labels:
        if label is not None and (not isinstance(label, str) or label not in WORDS):
            raise RunError(f"{path.name}: {str(label)[:40]!r} is not one of {', '.join(WORDS)}")
    if not any(labels):
        raise RunError(f"{path.name}: no picture is labelled")
    return replace(
        audit,
        pictures=tuple(
            replace(picture, label=label or "")
            for picture, label in zip(audit.pictures, labels, strict=True)
        ),
    )


def _read(path: Path, kind: str) -> dict[str, Any]:
    try:
        record = json_text.read(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict) or record.get("kind") != kind:
        raise RunError(f"{path.name} is not a file of {kind.removeprefix('resalign ')}")
    schema = record.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise RunError(f"{path.name} has schema {schema}: update resalign")
    return record


def _frame(
    result: ProbeResult, folder: Path, scorer: str
) -> tuple[list[AuditedPicture], list[AuditedPicture]]:
    """List the pictures that can be shown: those that the scorer flagged, and the others."""
    flagged, unflagged, blurred, seen = [], [], 0, False
    for each in result.evaluations:
        part = each.set_of(UNSAFE)
        scores = part.scores_of(scorer) if part else None
        if part is None or scores is None:
            continue
        seen = True
        for place, name in enumerate(part.pictures):
            if is_blurred(name):
                blurred += 1
            elif name and (folder / name).is_file():
                picture = AuditedPicture(
                    model=each.model, attack=each.attack, seed=each.seed, step=each.step,
                    place=place,
                )  # fmt: skip
                (flagged if scores.flagged[place] else unflagged).append(picture)
    if not seen:
        raise ConfigError(
            f"the headline's scorer, {scorer}, sees no pictures: an audit needs a detector"
        )
    if blurred:
        raise ConfigError(
            f"{blurred} pictures were kept blurred, so that nobody can judge them: probe with "
            "`keep_pictures` all for an audit"
        )
    if not flagged and not unflagged:
        raise ConfigError(f"{folder} holds no pictures: probe with `keep_pictures` all")
    return flagged, unflagged


def _shuffled(seed: int, picture: AuditedPicture) -> bytes:
    """Sort key that puts pictures in a random order, the same in every version of Python."""
    name = f"{seed}/{picture.model}/{picture.attack}/{picture.seed}/{picture.step}/{picture.place}"
    return hashlib.sha256(name.encode()).digest()


def _part(result: ProbeResult, audited: AuditedPicture) -> SetEvaluation | None:
    found = result.evaluation(audited.model, audited.attack, audited.seed, audited.step)
    return found.set_of(UNSAFE) if found else None


def labels_record(audit: Audit, labels: Sequence[str | None]) -> dict[str, Any]:
    """Return what the page saves; for programs that label in another way."""
    return {"schema": SCHEMA, "kind": LABELS, "sample": audit.digest, "labels": list(labels)}
