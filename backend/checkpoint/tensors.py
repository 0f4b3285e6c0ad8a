"""Single tensors out of a safetensors file, read by us and copied once.

The library's own reader maps the file into memory, so that weights would change or vanish with it;
and it needs the whole file's header again. Here each tensor is read from its byte range.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..errors import CheckpointError
from .header import Header
from .keys import Part, Source

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_BLOCK = {"q": 0, "k": 1, "v": 2}


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
        """The part of a tensor that `source` names, in its storage type, on the CPU."""
        entry = self.header.tensors[source.name]
        shape = part_shape(entry.shape, source.part)
        begin, size = entry.begin, entry.nbytes
        if source.part in _BLOCK:  # one of three equal blocks of rows: only these bytes are read
            size //= 3
            begin += _BLOCK[source.part] * size
        tensor = self._bytes(source.name, begin, size).view(TORCH_DTYPES[entry.dtype])
        if source.part == "transposed":
            return tensor.reshape(entry.shape).T.contiguous()
        return tensor.reshape(shape)

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


def part_shape(shape: tuple[int, ...], part: Part) -> tuple[int, ...]:
    """Shape of a part of a tensor of `shape`; the shape itself where the part cannot be taken."""
    if part in _BLOCK and shape and shape[0] % 3 == 0:
        return (shape[0] // 3, *shape[1:])
    if part == "transposed":
        return shape[::-1]
    if part == "matrix" and shape[2:] in ((1, 1), (1,)):
        return shape[:2]
    return shape
