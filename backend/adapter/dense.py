"""A change of all weights as a value: differences by the denoiser's own tensor names.

Where a low-rank adapter adds B·A to some weights, a dense one adds a tensor of full size to any of
the denoiser's tensors: weights, biases, scales of norms. Differences rather than new values: they
add up with other changes, and an export adds them to the source's own numbers, in its own type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .lora import Adapter
from .stack import stacked


@dataclass(frozen=True)
class DenseAdapter:
    """Full-size differences W' − W in float32, by tensor: `<module>.weight`, `<module>.bias`."""

    tensors: dict[str, Tensor]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of the denoiser's tensors that it changes."""
        return tuple(self.tensors)

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the names of the modules that it changes, each once."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.tensors))

    def change(self, parameter: str) -> Tensor:
        """Return W' − W of one of the denoiser's tensors."""
        return self.tensors[parameter].float()

    def shape(self, parameter: str) -> tuple[int, ...]:
        return tuple(self.tensors[parameter].shape)


AnyAdapter = Adapter | DenseAdapter


def summed(first: AnyAdapter, second: AnyAdapter) -> AnyAdapter:
    """Return the adapter that changes each tensor by the sum of both: dense if one of them is."""
    if isinstance(first, Adapter) and isinstance(second, Adapter):
        return stacked(first, second)
    tensors = {name: first.change(name) for name in first.parameters}
    for name in second.parameters:
        change = second.change(name)
        tensors[name] = tensors[name] + change if name in tensors else change
    return DenseAdapter(tensors)


def nonzero(changes: Iterator[tuple[str, Tensor]]) -> DenseAdapter:
    """Build the adapter of (tensor, difference); tensors that did not change stay out of it."""
    return DenseAdapter({name: change for name, change in changes if bool(torch.any(change))})
