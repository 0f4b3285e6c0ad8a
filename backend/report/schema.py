"""Writes and reads `report.json`: all data that the figures of a report are computed from.

    load_report(path) == without_paths(result)        (apart from figures that are not finite)

Schema 1, described in docs/formats.md. Files of the machine it was made on are named without
their folders; NaN and infinity, which JSON does not have, are null and come back as NaN.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError, RunError
from ..plan.file import PATH_FIELDS, from_json, to_json
from ..plan.fine_tune import RETAIN
from ..plan.measurement import ScorerConfig
from ..plan.probe import ProbePlan
from ..probe.audited import Audit
from ..probe.results import SCHEMA_VERSION, Evaluation, ModelInfo, ProbeResult
from ..run.json_lines import finite
from ..text import json_text, typed

T = TypeVar("T")
KIND = "resalign probe report"
_PATHS: dict[type, tuple[str, ...]] = {**PATH_FIELDS, ModelInfo: ("source",)}
# Folders before a file's name, wherever they stand in a text; not the slashes of an address.
_FOLDERS = re.compile(
    r"(?<![\w:/.\\~])(?:(?:~?/|[A-Za-z]:[\\/])(?=\S)|\\\\)(?:[^\s/\\:*?\"'<>|]+[\\/])*"
)


def to_report_json(result: ProbeResult, summary: Mapping[str, Any] | None = None) -> str:
    """Make the text of `report.json`: one line per evaluation, the same bytes for the same result.

    summary: figures computed from the evaluations, for other programs; not read back.
    """
    result = without_paths(result)
    record: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "kind": KIND,
        "complete": result.complete,
        "versions": dict(sorted(result.versions.items())),
        "models": [asdict(model) for model in result.models],
        "plan": to_json(result.plan),
        "prompts": {kind: list(texts) for kind, texts in result.prompts.items()},
        "warnings": list(result.warnings),
        **({"audit": result.audit.to_json()} if result.audit else {}),
        "summary": _no_folders(summary or {}),
        "looks": [evaluation.to_json() for evaluation in result.evaluations],
    }
    lines = [f"  {_dumps(key)}: {_value(key, value)}" for key, value in record.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load_report(path: Path | str) -> ProbeResult:
    """Read the result in a `report.json`, or in the `report.json` of a folder.

    Raises:
        RunError: there is none, it is damaged, or a newer version wrote it.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        record = json_text.read(path)
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; `resalign probe` writes one") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path.name} cannot be read as a report: {error}") from None
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise RunError(f"{path.name} is not the report of a probe: give the report.json of one")
    found = record.get("schema")
    if not isinstance(found, int) or found > SCHEMA_VERSION:
        raise RunError(
            f"{path.name} has schema {found}, and this version reads up to {SCHEMA_VERSION}: "
            "update resalign"
        )
    try:
        return ProbeResult(
            plan=from_json(ProbePlan, record["plan"], where="plan"),
            models=tuple(ModelInfo(**model) for model in record["models"]),
            evaluations=tuple(Evaluation.from_json(evaluation) for evaluation in record["looks"]),
            prompts={
                kind: tuple(typed.text(text, "a prompt") for text in texts)
                for kind, texts in record["prompts"].items()
            },
            complete=typed.flag(record["complete"], "complete"),
            versions={k: typed.text(v, "a version") for k, v in record["versions"].items()},
            warnings=tuple(typed.text(text, "a warning") for text in record["warnings"]),
            audit=Audit.from_json(record["audit"]) if record.get("audit") else None,
        )
    except ConfigError as error:
        raise RunError(f"{path.name} was written by another version: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{path.name} is damaged ({type(error).__name__}: {error}): write it again with "
            "`resalign report`"
        ) from None


def without_paths(value: T) -> T:
    """Name files without their folders, in all path fields of a value and of what it holds."""
    if isinstance(value, tuple):
        return tuple(without_paths(item) for item in value)  # type: ignore[return-value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes: dict[str, Any] = {}
    for item in fields(value):
        if not item.init or item.name == "evaluations":
            continue
        old = getattr(value, item.name)
        if item.name in _PATHS.get(type(value), ()):
            new = old if old in ("", RETAIN) else file_name(old)
        elif isinstance(value, ScorerConfig) and item.name == "command":
            new = tuple(file_name(part) for part in old)
        elif isinstance(value, ProbeResult) and item.name == "warnings":
            new = tuple(_FOLDERS.sub("", text) for text in old)
        else:
            new = without_paths(old)
        if new != old:
            changes[item.name] = new
    if isinstance(value, ProbeResult):
        changes["evaluations"] = tuple(
            _relative_pictures(evaluation) for evaluation in value.evaluations
        )
    return replace(value, **changes) if changes else value


def file_name(path: str) -> str:
    """Last part of a path of any system."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or path


def _relative_pictures(evaluation: Evaluation) -> Evaluation:
    def relative(path: str) -> str:
        return file_name(path) if _FOLDERS.match(path) else path

    sets = tuple(
        replace(part, pictures=tuple(relative(path) for path in part.pictures))
        for part in evaluation.sets
    )
    return replace(evaluation, sets=sets)


def _no_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _no_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_folders(item) for item in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def _value(key: str, value: Any) -> str:
    if key == "looks" and value:
        return "[\n" + ",\n".join(f"    {_dumps(evaluation)}" for evaluation in value) + "\n  ]"
    text = json.dumps(finite(value), ensure_ascii=False, indent=2, allow_nan=False)
    return text.replace("\n", "\n  ")


def _dumps(value: Any) -> str:
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
