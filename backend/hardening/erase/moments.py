"""Mean outer products of layers' inputs, E[x xᵀ], collected while a network runs.

An input of a linear layer is one x per token; of a convolution, one x per place, the channels
there. Layers that are given the same tensor (queries, keys and values) share one matrix. Products
are float32 as the pass itself; their sum is float64 on the same device, or on the CPU where the
device has no float64.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

_SUM = 8  # bytes of a number in float64


class Moments:
    """Weighted means of x xᵀ by layer. Attach it with `watching`, then run passes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._owner: dict[str, str] = {}
        self._totals: dict[str, float] = {}
        self._met: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self.weight = 1.0  # of each sample of the next passes

    def of(self, layer: str) -> Tensor:
        """Return the mean of x xᵀ of a layer's inputs, float64, [width, width]."""
        owner = self._owner[layer]
        return self._sums[owner] / self._totals[owner]

    def owner(self, layer: str) -> str:
        """Return the layer whose matrix this one shares: itself, or one with the same input."""
        return self._owner[layer]

    def watching(self, layers: Mapping[str, Any]) -> ExitStack:
        """Attach to layers until the returned stack is closed."""
        stack = ExitStack()
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(self._hook(name)).remove)
        return stack

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            given: Tensor = args[0]
            reference, owner = self._met.get(id(given), (None, name))
            if reference is not None and reference() is given and owner != name:
                self._owner[name] = owner
                return
            self._met[id(given)] = weakref.ref(given), name
            self._owner[name] = name
            self._add(name, rows_of(layer, given.detach()))

        return hook

    def _add(self, name: str, rows: Tensor) -> None:
        product = _summable((rows.T @ rows) * self.weight)
        self._totals[name] = self._totals.get(name, 0.0) + self.weight * len(rows)
        known = self._sums.get(name)
        self._sums[name] = product if known is None else known.add_(product)


def rows_of(layer: nn.Module, given: Tensor) -> Tensor:
    """Return a layer's input as rows, [n, width]: tokens, or the places of an image."""
    if isinstance(layer, nn.Conv2d):
        given = given.movedim(1, -1)
    return given.reshape(-1, given.shape[-1]).float()


def in_groups(layers: Mapping[str, Any], matrices: int, room: float) -> Iterator[dict[str, Any]]:
    """Split layers, in order, so that `matrices` matrices each of a group fit into `room` bytes.

    A layer that does not fit by itself is a group alone.
    """
    group: dict[str, Any] = {}
    used = 0.0
    for name, layer in layers.items():
        size = float(matrices * _SUM * layer.weight.shape[1] ** 2)
        if group and used + size > room:
            yield group
            group, used = {}, 0.0
        group[name] = layer
        used += size
    if group:
        yield group


def measure(
    layers: Mapping[str, Any], passes: Sequence[tuple[float, Callable[[], object]]]
) -> Moments:
    """Run the passes, each with a weight, and return the moments of the layers' inputs."""
    found = Moments()
    with found.watching(layers), torch.no_grad():
        for weight, run in passes:
            found.weight = weight
            run()
    return found


def _summable(product: Tensor) -> Tensor:
    """Return the product in float64, on the CPU if its device has none."""
    if product.device.type == "mps":
        product = product.cpu()
    return product.double()
