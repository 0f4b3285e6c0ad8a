"""View of a weights file for the families, and its small tensors' values, without torch."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from ..families.base.stored import Companion, StoredFile
from .header import Header


def stored_file(
    path: Path,
    header: Header,
    decided: str = "",
    beside: Callable[[Companion], StoredFile] | None = None,
    *,
    alone: bool = False,
) -> StoredFile:
    """Wrap a file whose header has been read. decided, beside, alone: see `StoredFile`."""
    return StoredFile(
        path.name, header.tensors, header.metadata, lambda name: read_values(path, header, name),
        decided, path, beside, alone,
    )  # fmt: skip


def read_values(path: Path, header: Header, name: str) -> list[float]:
    """Read a small tensor's values; empty for a storage type that is not decoded here."""
    entry = header.tensors[name]
    with path.open("rb") as file:
        file.seek(header.data_start + entry.begin)
        data = file.read(entry.nbytes)
    if entry.dtype in ("F16", "F32"):
        code = "e" if entry.dtype == "F16" else "f"
        return list(struct.unpack(f"<{entry.numel}{code}", data))
    if entry.dtype == "BF16":  # the upper half of a float32
        halves = struct.unpack(f"<{entry.numel}H", data)
        return [struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in halves]
    if entry.dtype == "F8_E5M2":  # the upper half of a float16
        return [struct.unpack("<e", bytes((0, byte)))[0] for byte in data]
    if entry.dtype == "F8_E4M3":
        return [_e4m3(byte) for byte in data]
    return []


def _e4m3(byte: int) -> float:
    """Decode one byte: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, and NaN is
    read as 480."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = mantissa / 8 * 2**-6 if not exponent else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if byte & 128 else size
