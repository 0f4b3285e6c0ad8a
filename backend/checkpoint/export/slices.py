"""Finds the tensors and rows of a checkpoint that an adapter changes; makes their new bytes.

A file's tensor may hold several of the network's tensors, one below the other. Each change is added
to its own rows; rows that the adapter does not change keep their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ...adapter.dense import AnyAdapter
from ...adapter.merge import Merged, merged_weight, together
from ...errors import ExportError
from ...families.base.sources import Piece, written_by
from ...numerics.torch_compat import FNUZ
from ..header import Header, TensorEntry
from ..info import CheckpointInfo
from .stream import Change

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, **FNUZ,
}  # fmt: skip
_MANY = 0.25  # share of the changed tensors that may lose their update without a warning


Touched = dict[str, tuple[Piece, ...]]  # a tensor's name in the file to what changes it


def touched_tensors(info: CheckpointInfo, adapter: AnyAdapter) -> Touched:
    """Map each of the file's tensors that the adapter changes to its changes, with their rows."""
    denoiser = info.family.denoiser
    sources = info.sources(denoiser)
    found, missing = written_by(adapter.parameters, sources)
    if missing:
        raise _unknown(info.path.name, missing, len(adapter.parameters))
    turned = [name for name in adapter.parameters if sources[name].part not in ("whole", "swapped")]
    if turned:
        raise ExportError(
            f"{info.path.name} keeps {turned[0]} and {len(turned) - 1} more of the adapter's "
            "tensors in another shape, which cannot be rewritten in place"
        )
    return found


def check_touched(
    file: str, headers: Iterable[Header], touched: Touched, adapter: AnyAdapter
) -> None:
    """Raise unless every touched tensor is there, in a type and shape that can be changed."""
    tensors = {name: entry for header in headers for name, entry in header.tensors.items()}
    missing = [p.parameter for name, own in touched.items() for p in own if name not in tensors]
    if missing:
        raise _unknown(file, missing, len(adapter.parameters))
    for name, pieces in touched.items():
        entry = tensors[name]
        for piece in pieces:
            shape = adapter.shape(piece.parameter)
            first, last = piece.rows or (0, entry.shape[0] if entry.shape else 0)
            rows = min(last, entry.shape[0]) - first if entry.shape else 0
            if (rows, *entry.shape[1:]) != shape:
                where = f"{name} has shape {list(entry.shape)}" if piece.rows is None else (
                    f"{name} has {rows} rows for it, of {list(entry.shape)}"
                )  # fmt: skip
                raise ExportError(
                    f"{file}: {where}, but the adapter's {_shown(piece.parameter)} changes "
                    f"{list(shape)}: it was made for another model"
                )
        if entry.dtype not in DTYPES:
            raise ExportError(
                f"{file}: {name} is stored as {entry.dtype}, a quantised type that cannot be "
                "changed in place: export from the fp16 or fp32 original"
            )


@dataclass(slots=True)
class Tally:
    """Statistics of the changes, collected while they are made."""

    touched: int = 0
    largest_change: float = 0.0
    largest_change_in: str = ""
    lost: int = 0
    change_squared: float = 0.0
    error_squared: float = 0.0

    def change(self, name: str, pieces: tuple[Piece, ...], adapter: AnyAdapter) -> Change:
        """Return the change of one tensor, for `stream.rewrite`."""

        def apply(entry: TensorEntry, old: bytearray) -> Any:
            weight = torch.frombuffer(old, dtype=DTYPES[entry.dtype]).view(entry.shape)
            found = [
                merged_weight(
                    _rows(weight, piece), piece.in_file(adapter.change(piece.parameter)), name
                )
                for piece in pieces
            ]
            self._add(name, found)
            result = weight.clone() if pieces[0].rows else found[0].weight
            for piece, merged in zip(pieces, found, strict=True):
                if piece.rows:
                    _rows(result, piece).copy_(merged.weight)
            return result.contiguous().reshape(-1).view(torch.uint8).numpy().data

        return apply

    @property
    def rounding_error(self) -> float:
        """Return ‖what was added − ΔW‖ / ‖ΔW‖ over changed tensors: 0 exact, 1 nothing arrived."""
        return (self.error_squared / self.change_squared) ** 0.5 if self.change_squared else 0.0

    def warnings(self) -> tuple[str, ...]:
        if self.touched and not self.change_squared:
            return ("the adapter changes nothing: all its updates are zero",)
        if self.lost > _MANY * self.touched:
            return (
                f"{self.lost} of {self.touched} changed tensors lost more than half of their "
                "update to rounding: their type is too coarse for it; harden the fp16 or fp32 "
                "version instead, and probe the written file, not the adapter",
            )
        return ()

    def _add(self, name: str, pieces: list[Merged]) -> None:
        """Count one tensor with all its pieces."""
        whole = pieces[0] if len(pieces) == 1 else together(pieces)
        self.touched += 1
        self.lost += whole.lost
        self.change_squared += whole.change_norm**2
        self.error_squared += whole.error_norm**2
        if whole.relative_change > self.largest_change:
            self.largest_change, self.largest_change_in = whole.relative_change, name


def _rows(weight: torch.Tensor, piece: Piece) -> torch.Tensor:
    return weight if piece.rows is None else weight[slice(*piece.rows)]


def _unknown(file: str, missing: list[str], count: int) -> ExportError:
    return ExportError(
        f"{file} has no tensor for {len(missing)} of the adapter's {count} changes (first: "
        f"{_shown(missing[0])}): the adapter was made for another model"
    )


def _shown(parameter: str) -> str:
    """Name a weight by its module."""
    return parameter.removesuffix(".weight")
