"""The header of a safetensors file: names, types, shapes and byte ranges; no data is read.

Layout of such a file: 8 bytes length N (little-endian), N bytes of JSON, then the data. The JSON
maps each tensor to {"dtype", "shape", "data_offsets": [begin, end)}, counted from the start of the
data, and "__metadata__" to strings. The file is untrusted input: every number is checked before
it is used. Source: the format's description in https://github.com/huggingface/safetensors.

Only the standard library is used: reading a header takes milliseconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..text.regular_file import check_regular

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor's entry. dtype: the format's name (`F16`); begin, end: bytes from `data_start`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header. tensors are in the order of the JSON, not of the data."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    data_start: int

    @property
    def data_bytes(self) -> int:
        return max((entry.end for entry in self.tensors.values()), default=0)


def read_header(path: str | Path) -> Header:
    """Read and check the header of a safetensors file; a CheckpointError says what is wrong."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a .safetensors file")
    try:
        check_regular(path)
        with path.open("rb") as file:
            start = file.read(64)
            refuse_other_formats(path.name, start)
            size = path.stat().st_size
            length = int.from_bytes(start[:8], "little")
            _check_length(path.name, start, length, size)
            file.seek(8)
            text = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: check the path") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    raw = _parse(path.name, text)
    metadata = _metadata(path.name, raw.pop("__metadata__", {}))
    tensors = {name: _entry(path.name, name, value) for name, value in raw.items()}
    _check_ranges(path.name, tensors, data_bytes=size - 8 - length)
    return Header(tensors, metadata, data_start=8 + length)


def refuse_other_formats(name: str, start: bytes) -> None:
    """Raise if the first bytes are those of another kind of file that people do have."""
    pickled = start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"
    # the same two bytes begin a safetensors header of 640, 896, 1152 or 1408 bytes
    if start[:4] == b"PK\x03\x04" or (pickled and start[2:9] != bytes(6) + b"{"):
        raise CheckpointError(
            f"{name} is a pickle (.ckpt, .pt, .bin), whatever it is called; opening one can run "
            "code, so they are refused: convert it to .safetensors first, on a machine you trust "
            "with it, or download the .safetensors version"
        )
    if start[:4] == b"GGUF":
        raise CheckpointError(
            f"{name} is a quantised GGUF file: give the original .safetensors in bf16, fp16 or fp32"
        )
    if start.lstrip()[:14].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{name} is a web page, not a model; the download wanted a log-in: fetch it again"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"
        )


def _check_length(name: str, start: bytes, length: int, size: int) -> None:
    if size < 8:
        raise CheckpointError(f"{name} has only {size} bytes: it is truncated; fetch it again")
    if length > MAX_HEADER_BYTES or length < 2 or start[8:9] not in (b"{", b""):
        raise CheckpointError(
            f"{name} is not a safetensors file: it claims a header of {length} bytes, which cannot "
            "be; give a .safetensors checkpoint, or fetch this one again"
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{name} is truncated within its header ({size} of at least {8 + length} bytes): "
            "fetch it again"
        )


def _parse(name: str, text: bytes) -> dict[str, Any]:
    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(
                    f"{name} lists {key!r} twice in its header: it is damaged or was tampered "
                    "with; fetch it again"
                )
            found[key] = value
        return found

    try:
        raw = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name} is not a safetensors file: its header is not JSON ({str(error)[:80]}); give a "
            ".safetensors checkpoint, or fetch this one again"
        ) from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{name} is not a safetensors file: its header is not a JSON object")
    return raw


def _metadata(name: str, raw: Any) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise CheckpointError(f"{name}: the metadata of its header must map names to strings")
    return raw


def _entry(file: str, name: str, raw: Any) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _damaged(file, name, "has no proper dtype, shape and data_offsets") from None
    numbers = (*shape, begin, end)
    fits = all(type(n) is int and 0 <= n < 2**63 for n in numbers) and len(shape) <= 64
    if not isinstance(dtype, str) or not fits:
        raise _damaged(file, name, "has a dtype, shape or offset of the wrong kind")
    entry = TensorEntry(dtype, shape, begin, end)
    if dtype in BITS and entry.nbytes * 8 != entry.numel * BITS[dtype]:
        raise _damaged(file, name, f"spans {entry.nbytes} bytes, not those of {dtype} {shape}")
    if begin > end:
        raise _damaged(file, name, "ends before it begins")
    return entry


def _check_ranges(file: str, tensors: dict[str, TensorEntry], *, data_bytes: int) -> None:
    """Raise unless the tensors fill the file without overlap or hole, as the format asks."""
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin < end:
            raise _damaged(file, name, "overlaps another tensor")
        if entry.begin > end:
            raise _damaged(file, name, f"leaves a hole of {entry.begin - end} bytes before it")
        end = entry.end
    if end > data_bytes:
        raise CheckpointError(
            f"{file} is truncated: it has {data_bytes} of {end} bytes of weights; fetch it again"
        )
    if end < data_bytes:
        raise CheckpointError(
            f"{file} has {data_bytes - end} bytes after its last tensor: it is damaged or was "
            "tampered with; fetch it again"
        )


def _damaged(file: str, name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: tensor {name[:120]!r} {what}: the file is damaged or was tampered with; "
        "fetch it again"
    )
