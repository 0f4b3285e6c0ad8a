"""Twelve ways to damage a file of a run or probe folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

DAMAGES = ("delete", "empty", "half", "flip", "flip head", "append", "swap", "list", "unknown",
           "nested", "folder", "binary")  # fmt: skip


def damage(path: Path, kind: str, other: Path) -> None:
    """Damage one file. other: the file of the same name in another folder, for `swap`."""
    data = path.read_bytes()
    if kind in ("delete", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "half":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "flip":
        path.write_bytes(_flipped(data, len(data) // 2))
    elif kind == "flip head":
        path.write_bytes(_flipped(data, 9))
    elif kind == "append":
        path.write_bytes(data + b"\nmore\n")
    elif kind == "swap" and other.exists():
        shutil.copyfile(other, path)
    elif kind == "list":
        path.write_text("[1, 2]\n")
    elif kind == "unknown":
        path.write_text(_with_unknown_field(data))
    elif kind == "nested":
        path.write_text("[" * 100_000 + "]" * 100_000 + "\n")
    else:
        path.write_bytes(bytes(range(256)) * 4)


def _flipped(data: bytes, at: int) -> bytes:
    """Flip all bits of eight bytes."""
    part = bytes(byte ^ 255 for byte in data[at : at + 8])
    return data[:at] + part + data[at + 8 :]


def _with_unknown_field(data: bytes) -> str:
    try:
        return json.dumps({**json.loads(data), "unknown": 1}) + "\n"
    except (ValueError, TypeError):  # several lines, or no JSON at all
        return data.decode("utf-8", "replace") + '{"unknown": 1}\n'
