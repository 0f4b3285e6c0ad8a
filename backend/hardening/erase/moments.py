"""Mean outer products of layers' inputs, E[x xᵀ], collected while a network runs.

An input of a linear layer is one x per token; of a convolution, one x per place: the channels
there, or the whole patch under the kernel. Neighbouring patches overlap, so those of every second
place in each direction do, in a quarter of the time. Layers that are given the same tensor
(queries, keys and values) share one matrix. Products of a pass are float32 as the pass itself;
their sum is float64 on the same device, or on the CPU where the device has no float64.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_SUM = 8  # bytes of a number in float64
_EVERY = 2  # of the places of a convolution, in each direction: its patches overlap


class Moments:
    """Weighted means of x xᵀ by layer. Attach it with `watching`, then run passes.

    patches: names of convolutions whose x are patches.
    """

    def __init__(self, patches: Collection[str] = ()) -> None:
        self._patches = patches
        self._sums: dict[str, Tensor] = {}
        self._owner: dict[str, str] = {}
        self._totals: dict[str, float] = {}
        self._met: dict[tuple[int, object], tuple[weakref.ref[Tensor], str]] = {}
        self.weight = 1.0  # of each sample of the next passes

    def of(self, layer: str) -> Tensor:
        """Return the mean of x xᵀ of a layer's inputs, float64, [width, width]."""
        owner = self._owner[layer]
        return self._sums[owner] / self._totals[owner]

    def owner(self, layer: str) -> str:
        """Return the layer whose matrix this one shares: itself, or one with the same input."""
        return self._owner[layer]

    def take(self, layer: str) -> Tensor:
        """Return what `of` does, and forget it: no copy of a wide matrix is made."""
        owner = self._owner[layer]
        return self._sums.pop(owner).div_(self._totals.pop(owner))

    def sharing(self, layers: Iterable[str]) -> dict[str, list[str]]:
        """Return the layers by the first of them that was given the same input."""
        found: dict[str, list[str]] = {}
        for name in layers:
            found.setdefault(self._owner[name], []).append(name)
        return found

    def watching(self, layers: Mapping[str, Any]) -> ExitStack:
        """Attach to layers until the returned stack is closed."""
        stack = ExitStack()
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(self._hook(name)).remove)
        return stack

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            given: Tensor = args[0]
            window = _window(layer) if name in self._patches else None
            key = id(given), tuple((window or {}).items())
            reference, owner = self._met.get(key, (None, name))
            if reference is not None and reference() is given and owner != name:
                self._owner[name] = owner
                return
            self._met[key] = weakref.ref(given), name
            self._owner[name] = name
            if window is None:
                self._add(name, [rows_of(layer, given.detach())])
                return
            samples = given.detach().split(1)  # the patches of a batch would be k² as large
            self._add(name, (patches_of(layer, sample, every=_EVERY) for sample in samples))

        return hook

    def _add(self, name: str, parts: Iterable[Tensor]) -> None:
        """Add the products of a pass, whose rows come in parts."""
        product, count = torch.zeros(()), 0
        for rows in parts:
            product = torch.addmm(product, rows.T, rows) if count else rows.T @ rows
            count += len(rows)
        summed = _summable(product * self.weight)
        self._totals[name] = self._totals.get(name, 0.0) + self.weight * count
        known = self._sums.get(name)
        self._sums[name] = summed if known is None else known.add_(summed)


def rows_of(layer: nn.Module, given: Tensor) -> Tensor:
    """Return a layer's input as rows, [n, width]: tokens, or the places of an image."""
    if isinstance(layer, nn.Conv2d):
        given = given.movedim(1, -1)
    return given.reshape(-1, given.shape[-1]).float()


def patches_of(layer: nn.Module, given: Tensor, *, every: int = 1) -> Tensor:
    """Return a convolution's input as rows, [n, channels · k · k]: the patch of each output place,
    in the order of the weight's own numbers. every: of the places, in each direction."""
    window = _window(layer)
    window["stride"] = tuple(every * step for step in layer.stride)  # type: ignore[union-attr]
    rows = functional.unfold(given.float(), **window)
    return rows.movedim(1, -1).reshape(-1, rows.shape[1])


def takes_patches(layer: nn.Module) -> bool:
    """Return True for a convolution whose patches are more than its channels."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.weight[0, 0].numel() > 1
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def matrix_bytes(layer: nn.Module, *, patches: bool = False) -> int:
    """Return the bytes of a mean of x xᵀ."""
    weight: Any = layer.weight
    return _SUM * (weight[0].numel() if patches else weight.shape[1]) ** 2


def in_groups(
    layers: Mapping[str, Any], matrices: int, room: float, patches: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Split layers, in order, so that `matrices` matrices each of a group fit into `room` bytes.

    A layer that does not fit by itself is a group alone.
    """
    group: dict[str, Any] = {}
    used = 0.0
    for name, layer in layers.items():
        size = float(matrices * matrix_bytes(layer, patches=name in patches))
        if group and used + size > room:
            yield group
            group, used = {}, 0.0
        group[name] = layer
        used += size
    if group:
        yield group


def measure(
    layers: Mapping[str, Any],
    passes: Sequence[tuple[float, Callable[[], object]]],
    patches: Collection[str] = (),
) -> Moments:
    """Run the passes, each with a weight, and return the moments of the layers' inputs."""
    found = Moments(patches)
    with found.watching(layers), torch.no_grad():
        for weight, run in passes:
            found.weight = weight
            run()
    return found


def _window(layer: Any) -> dict[str, Any]:
    """Return a convolution's window, as `unfold` takes it."""
    names = ("kernel_size", "dilation", "padding", "stride")
    return {name: getattr(layer, name) for name in names}


def _summable(product: Tensor) -> Tensor:
    """Return the product in float64, on the CPU if its device has none."""
    if product.device.type == "mps":
        product = product.cpu()
    return product.double()
