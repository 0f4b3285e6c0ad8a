"""Reports to pack, readers of a pack, and a small checker of its schema."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes_counting import counted_result, course
from fakes_probe import fake_plan, fake_result
from huggingface_hub import ModelCard

from resalign.backend.report.build import write_report
from resalign.backend.report.pack import pack_report
from resalign.backend.report.pack_results import SCHEMA_FILE

SCHEMA = json.loads(SCHEMA_FILE.read_text("utf-8"))
TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
    "integer": int, "number": (int, float),
}  # fmt: skip
CHECKED = {
    "type", "const", "enum", "required", "properties", "additionalProperties", "items", "pattern",
    "minimum", "maximum", "anyOf", "$ref", "$defs", "$schema", "title", "description",
}  # fmt: skip
WORKING = course("original", (80, 100), (200, 80, 100)) | course("safe", (5, 95), (200, 20, 95))
BROKEN = course("original", (80, 100), (200, 80, 100)) | course("grey", (0, 5), (200, 0, 4))


def faults(value: Any, schema: dict, where: str = "$") -> list[str]:
    """Violations of a schema; a keyword that this does not check is an error."""
    assert set(schema) <= CHECKED, f"{where}: {set(schema) - CHECKED}"
    found = []
    if "$ref" in schema:
        found += faults(value, SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]], where)
    if "anyOf" in schema and all(faults(value, each, where) for each in schema["anyOf"]):
        found.append(f"{where}: none of anyOf")
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    fits = [isinstance(value, TYPES[k]) and not (isinstance(value, bool) and k in
            ("integer", "number")) for k in kinds]  # fmt: skip
    if kinds and not any(fits):
        return [*found, f"{where}: {value!r} is not {kinds}"]
    if "const" in schema and (value != schema["const"] or type(value) is not type(schema["const"])):
        found.append(f"{where}: {value!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r}")
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{where}: {value!r}")
    if isinstance(value, int | float):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        found += [f"{where}: {value} is beyond"] * (not low <= value <= high)
    if isinstance(value, list):
        for place, item in enumerate(value):
            found += faults(item, schema.get("items", {}), f"{where}[{place}]")
    if isinstance(value, dict):
        found += [f"{where}.{k}: missing" for k in schema.get("required", []) if k not in value]
        other = schema.get("additionalProperties", {})
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, other)
            found += faults(item, inner, f"{where}.{key}")
    return found


def write(result, folder: Path) -> Path:
    write_report(result, folder)
    return folder


def results(pack: Path) -> dict:
    return json.loads((pack / "results.json").read_text("utf-8"))


def card(pack: Path) -> str:
    return (pack / "README.md").read_text("utf-8")


def body(pack: Path) -> str:
    """The card's first words after its title."""
    return card(pack).split("\n# ", 1)[1].split("\n\n", 1)[1]


def index(pack: Path) -> dict[str, float]:
    """`model-index` as Hugging Face's own reader sees it."""
    data = ModelCard.load(pack / "README.md").data
    return {each.metric_type: each.metric_value for each in data.eval_results or []}


def write_full(folder: Path) -> Path:
    """A report of two models and their pictures, and its pack in `pack`."""
    plan = fake_plan(pictures=1)
    judge, denoising = plan.scorers
    plan = replace(plan, scorers=(judge, replace(denoising, threshold=0.2499)))
    result = fake_result(folder, plan=plan, models=("original", "hardened"))
    models = [replace(m, sha256=hashlib.sha256(m.name.encode()).hexdigest()) for m in result.models]
    write_report(replace(result, models=tuple(models)), folder, pictures=folder)
    pack_report(folder, folder / "pack")
    return folder


_MADE: dict[str, Path] = {}  # shared by all files of tests, which only read them


def pack_fixtures() -> tuple[Any, Any]:
    """`full`, a report of two models with its pack; `small`, one without pictures."""

    @pytest.fixture(scope="module")
    def full(tmp_path_factory) -> Path:
        """A report of two models and their pictures, and its pack in `pack`."""
        if "full" not in _MADE:
            _MADE["full"] = write_full(tmp_path_factory.mktemp("full"))
        return _MADE["full"]

    @pytest.fixture(scope="module")
    def small(tmp_path_factory) -> Path:
        """A report without pictures, of a model whose figures are known."""
        if "small" not in _MADE:
            _MADE["small"] = write(counted_result(WORKING), tmp_path_factory.mktemp("small"))
        return _MADE["small"]

    return full, small
