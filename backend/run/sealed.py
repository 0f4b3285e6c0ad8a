"""JSON and tensor files with a checksum that covers their content and what they are.

The checksum is the SHA-256 of the file's name, its owner (the run or probe it belongs to) and its
content: a file that was damaged, renamed or copied from another run is noticed. It is kept inside
the file, under `checksum`. A file without one was written by an older version and is accepted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from ..errors import RunError
from ..text import json_text
from ..text.regular_file import check_regular
from .files import read_file, replace_file

CHECKSUM = "checksum"
_HEADER = "resalign"  # the one metadata key, holding JSON: safetensors shuffles several keys


def read_json(path: Path, owner: str = "") -> dict[str, Any]:
    """Read a JSON object of a run's or probe's folder; raise a RunError if it is damaged."""
    value = peek_json(path)
    found = value.pop(CHECKSUM, None)
    if found is not None and found != _checksum(path.name, owner, value):
        raise RunError(
            f"{path} was changed, or belongs to another folder (wrong checksum): put the original "
            "back; if the change is yours, remove the line `checksum` from it"
        )
    return value


def peek_json(path: Path) -> dict[str, Any]:
    """Read a JSON object without comparing its checksum, to see what it is."""
    try:
        value = json_text.loads(read_file(path)[: json_text.LONGEST + 1])
    except json_text.JsonError as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any], owner: str = "") -> None:
    """Write a JSON file atomically, synced, with its checksum."""
    plain = json.loads(json.dumps(value))
    sealed = {**plain, CHECKSUM: _checksum(path.name, owner, plain)}
    replace_file(path, (json.dumps(sealed, indent=2) + "\n").encode())


def seal_record(record: Mapping[str, Any], name: str, owner: str) -> dict[str, Any]:
    """Return the record of a JSON lines file with its checksum."""
    plain = json.loads(json.dumps(record))
    return {**plain, CHECKSUM: _checksum(name, owner, plain)}


def open_record(record: Any, name: str, owner: str) -> dict[str, Any] | None:
    """Return a record without its checksum; None if it is damaged or not of this file."""
    if not isinstance(record, dict):
        return None
    plain = {key: value for key, value in record.items() if key != CHECKSUM}
    found = record.get(CHECKSUM)
    return plain if found is None or found == _checksum(name, owner, plain) else None


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], owner: str = ""
) -> None:
    """Write tensors and a JSON header atomically, synced, with their checksum."""
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    kept = json.loads(json.dumps(header))
    sealed = {**kept, CHECKSUM: _checksum(path.name, owner, kept, plain)}
    replace_file(path, save(plain, metadata={_HEADER: json.dumps(sealed)}))


def read_tensors(path: Path, owner: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copy tensors to memory of their own: the library's are views of the mapped file, aligned as
    its header happens to end, and Windows cannot replace a file that is mapped."""
    try:
        check_regular(path)
        with _opened(path) as file:
            header = _header(path, file.metadata())
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    found = header.pop(CHECKSUM, None)
    if found is not None and found != _checksum(path.name, owner, header, tensors):
        raise _damaged(path, "wrong checksum: it was changed, or belongs to another run")
    return tensors, header


def _opened(path: Path) -> Any:
    """Open a tensor file. The library maps it, and says in a RuntimeError that it cannot: too many
    files are open, for one."""
    try:
        return safe_open(path, framework="pt")
    except RuntimeError as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def read_header(path: Path) -> dict[str, Any]:
    """Read the JSON header of a tensor file, unchecked, without its tensors."""
    try:
        check_regular(path)
        with _opened(path) as file:
            return _header(path, file.metadata())
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        header = json_text.loads((metadata or {})[_HEADER])
    except (ValueError, KeyError) as error:
        raise _damaged(path, error) from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header holds no JSON object")
    return header


def _damaged(path: Path, why: object) -> RunError:
    return RunError(
        f"{path} is damaged and cannot be used ({why}): put a copy of it back, or begin anew in "
        "another folder"
    )


def _checksum(
    name: str, owner: str, value: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> str:
    text = json.dumps([name, owner, value], sort_keys=True, separators=(",", ":"))
    found = hashlib.sha256(text.encode())
    for key, tensor in sorted((tensors or {}).items()):
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(uint8).numpy().data)
    return found.hexdigest()
