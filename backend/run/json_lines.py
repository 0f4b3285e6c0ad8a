"""Records, one JSON object per line: appended and flushed, and read back after any crash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..text import json_text
from .files import explained, read_file


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record; figures that are not finite become null."""
    with explained(path), path.open("ab") as file:
        file.write(line_of(record))


def line_of(record: Mapping[str, Any]) -> bytes:
    """Return a record as its line; figures that are not finite become null."""
    return (json.dumps(finite(record), allow_nan=False) + "\n").encode()


def read(path: Path) -> list[dict[str, Any]]:
    """Read the records; leave out a last line that was cut off by a crash."""
    return [record for record, _ in _with_ends(path)]


def cut(path: Path, keep: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
    """Remove everything after the last record that `keep` accepts, and any broken last line."""
    if path.exists():
        kept = [end for record, end in _with_ends(path) if keep(record)]
        with explained(path):
            os.truncate(path, max(kept, default=0))


def parse_lines(data: bytes, what: str | Path) -> list[dict[str, Any]]:
    """Parse whole lines; leave out a last one that was cut off by a crash."""
    return [record for record, _ in _parsed(data, what)]


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, with null."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value


def _with_ends(path: Path) -> list[tuple[dict[str, Any], int]]:
    return _parsed(read_file(path), path) if path.exists() else []


def _parsed(data: bytes, what: str | Path) -> list[tuple[dict[str, Any], int]]:
    found, end = [], 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break  # a crash in the middle of a write
        end += len(line)
        try:
            record = json_text.loads(line)
        except json_text.JsonError:
            record = None
        if not isinstance(record, dict):
            raise RunError(f"{what}: line {number} is damaged; move it away")
        found.append((record, end))
    return found
