"""The places of a network's tensors in a file, for reading and for writing back.

A file's tensor may hold one tensor of a network, or several, one below the other: OpenCLIP keeps
q, k and v in one matrix, as most transformers do. So each tensor of the network names the file's
tensor and its own rows in it. Read the other way round, the same table says which rows of which
file tensor each module owns (`written_by`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# The network's tensor is the file's (its rows): as it is; a 1 × 1 convolution's weight as a matrix;
# its transpose; with the two halves of its rows exchanged (scale and shift of a modulation).
Part = Literal["whole", "matrix", "transposed", "swapped"]
Rows = tuple[int, int]  # from the first up to, not including, the second


class Source(NamedTuple):
    """The file's tensor `name`, or only its `rows`, read as `part` says."""

    name: str
    part: Part = "whole"
    rows: Rows | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a file's tensor that are one tensor of the network; None means all of them.

    part: as in `Source`.
    """

    parameter: str
    rows: Rows | None = None
    part: Part = "whole"

    def in_file(self, change: Tensor) -> Tensor:
        """Return a change of the network's tensor as the file keeps it."""
        return swap_halves(change) if self.part == "swapped" else change


def swap_halves(tensor: Tensor) -> Tensor:
    """Exchange the upper and the lower half of the rows; twice is the identity."""
    half = tensor.shape[0] // 2
    return tensor.roll(half, 0)


def read_part(tensor: Tensor, source: Source) -> Tensor:
    """Return what `source` reads of a tensor in memory, as a view where that is possible."""
    if source.rows is not None:
        tensor = tensor[source.rows[0] : source.rows[1]]
    if source.part == "transposed":
        return tensor.T
    if source.part == "matrix":
        return tensor.reshape(part_shape(tuple(tensor.shape), Source(source.name, "matrix")))
    return swap_halves(tensor) if source.part == "swapped" else tensor


def written_by(
    parameters: Iterable[str], sources: Mapping[str, Source]
) -> tuple[dict[str, tuple[Piece, ...]], list[str]]:
    """Name in the file to the network's tensors that own (rows of) it; and those without a place.

    sources: by the network's tensor names, as `TensorLayout.sources` gives them.
    """
    found: dict[str, tuple[Piece, ...]] = {}
    missing = []
    for parameter in parameters:
        source = sources.get(parameter)
        if source is None:
            missing.append(parameter)
            continue
        piece = Piece(parameter, source.rows, source.part)
        found[source.name] = (*found.get(source.name, ()), piece)
    return found, missing


def part_shape(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    """Shape of what `source` reads of a tensor of `shape`; `shape` itself where it cannot."""
    if source.rows is not None and shape and source.rows[1] <= shape[0]:
        shape = (source.rows[1] - source.rows[0], *shape[1:])
    if source.part == "transposed":
        return shape[::-1]
    if source.part == "matrix" and shape[2:] in ((1, 1), (1,)):
        return shape[:2]
    return shape
