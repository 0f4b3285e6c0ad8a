"""Reads single tensors of a safetensors file; each is copied once.

The library's own reader maps the file into memory, so that weights would change or vanish with it;
and it needs the whole file's header again. Here each tensor is read from its byte range.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..families.base.sources import Source, part_shape, swap_halves
from .header import Header

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


class TensorFile:
    """An open safetensors file; a context manager."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.header = path, header
        self._file = path.open("rb", buffering=0)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, source: Source) -> Tensor:
        """Read the part of a tensor that `source` names, in its storage type, on the CPU."""
        entry = self.header.tensors[source.name]
        begin, size, stored = entry.begin, entry.nbytes, entry.shape
        if source.rows is not None:  # only the bytes of these rows are read
            first, last = source.rows
            row = entry.nbytes // entry.shape[0]
            begin, size, stored = begin + first * row, (last - first) * row, (
                last - first, *entry.shape[1:]
            )  # fmt: skip
        tensor = self._bytes(source.name, begin, size).view(TORCH_DTYPES[entry.dtype])
        if source.part == "transposed":
            return tensor.reshape(stored).T.contiguous()
        tensor = tensor.reshape(part_shape(entry.shape, source))
        return swap_halves(tensor) if source.part == "swapped" else tensor

    def _bytes(self, name: str, begin: int, size: int) -> Tensor:
        data = torch.empty(size, dtype=torch.uint8)
        target = data.numpy().data
        self._file.seek(self.header.data_start + begin)
        done = 0
        while done < size:
            count = self._file.readinto(target[done:])
            if not count:
                raise CheckpointError(
                    f"{self.path.name} ended within {name}: it changed while it was read; try again"
                )
            done += count
        return data
