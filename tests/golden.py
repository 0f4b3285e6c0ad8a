"""Digests of what the program writes, kept in `data/golden.json`, and what they depend on.

A digest comes in parts, so that a failure says what changed: `layout` (names, types and shapes of
tensors, in the order of the file), `tensors` (all bytes after the header), `metadata`, `records`.

Floating-point results depend on the processor and on library versions. `machine` says where the
stored digests come from. On another one the parts may differ by rounding: the test then skips, and
names what differs between the machines. The layout must be the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden.json"
WRITES = os.environ.get("RESALIGN_GOLDEN") == "write"
_EVERYWHERE = "layout"  # the part that depends on no machine
_DATES = ("modelspec.date", "resalign.versions")  # of a checkpoint's metadata


def machine() -> dict[str, Any]:
    """Properties of the machine that the last bits depend on."""
    return {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
    }


def compare(name: str, found: dict[str, str]) -> None:
    """Fail where a digest differs from the stored one; with RESALIGN_GOLDEN=write, store it."""
    if WRITES:
        _store(name, found)
    assert found.keys() == _read()["digests"][name].keys()
    compare_some(name, found)


def compare_some(name: str, found: dict[str, str]) -> None:
    """Compare some of the parts that another test stores with their recorded digests."""
    record = _read()
    expected, there, here = record["digests"][name], record["machine"], machine()
    changed = [part for part in found if found[part] != expected[part]]
    if changed and here != there and not any(part.endswith(_EVERYWHERE) for part in changed):
        differing = "; ".join(
            f"{key} {there.get(key)!r}, here {here.get(key)!r}"
            for key in sorted({*there, *here})
            if there.get(key) != here.get(key)
        )
        pytest.skip(f"{name}: stored on a machine that may round differently ({differing})")
    assert not changed, f"{name}: other bytes than before in {', '.join(changed)}"


def same_machine() -> bool:
    """True if the stored digests come from a machine like this."""
    return machine() == _read()["machine"]


def tensor_file(name: str, path: Path) -> dict[str, str]:
    """The digests of a safetensors file, by part; the date and versions of an export left out."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.pop("__metadata__", {})
    return {
        f"{name}.layout": digest(header),
        f"{name}.tensors": hashlib.sha256(content[end:]).hexdigest(),
        f"{name}.metadata": digest(
            {k: _without_checksum(k, v) for k, v in metadata.items() if k not in _DATES}
        ),
    }


def _without_checksum(key: str, text: str) -> str:
    """Our own header without its checksum, which follows from all that is digested here."""
    return json.dumps(without(json.loads(text), "checksum")) if key == "resalign" else text


def digest(value: Any) -> str:
    """SHA-256 of a value in canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def without(value: Any, *keys: str) -> Any:
    """A JSON value without these keys, at any depth."""
    if isinstance(value, dict):
        return {k: without(v, *keys) for k, v in value.items() if k not in keys}
    return [without(item, *keys) for item in value] if isinstance(value, list) else value


def json_lines(path: Path, *keys: str) -> list[Any]:
    """The records of a file, without these keys."""
    return [without(json.loads(line), *keys) for line in path.read_text("utf-8").splitlines()]


def _read() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text("utf-8"))


def _store(name: str, found: dict[str, str]) -> None:
    """Keep the digests; those of another machine go."""
    record, here = _read() if GOLDEN.exists() else {}, machine()
    kept = record["digests"] if record.get("machine") == here else {}
    digests = dict(sorted({**kept, name: found}.items()))
    GOLDEN.write_text(json.dumps({"machine": here, "digests": digests}, indent=1) + "\n", "utf-8")


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
