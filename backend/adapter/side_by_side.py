"""Several users' copies of θ on one network, each at work on its own samples of a pass.

A pass of three samples costs less than three passes of one, on a GPU and on a CPU: small batches
leave them waiting for weights. The users of an outer step start from the same θ and share all
frozen weights, so their passes can be one. Only the low-rank part is each user's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .lora import A, B


class SideBySide:
    """`count` copies of θ, to be trained. Use it with `with`: that puts them on the layers.

    users: each one's parameters, by the names of θ.
    """

    def __init__(
        self, layers: Mapping[str, Any], theta: Mapping[str, Tensor], count: int, strength: float
    ) -> None:
        self.users = [
            {name: tensor.detach().clone().requires_grad_(True) for name, tensor in theta.items()}
            for _ in range(count)
        ]
        self._layers = dict(layers)
        self._strength = strength
        self._order: list[tuple[int, int]] = []
        self._hooks: list[Any] = []

    def seat(self, order: Sequence[tuple[int, int]]) -> None:
        """Set the owners of the next pass's samples, in order: (user, number of samples)."""
        self._order = list(order)

    def __enter__(self) -> SideBySide:
        for name, layer in self._layers.items():
            self._hooks.append(layer.register_forward_hook(self._adding(name, layer)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _adding(self, name: str, layer: Any) -> Any:
        base = layer.get_base_layer()

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            parts = inputs[0].split([count for _, count in self._order])
            moves = [
                _low_rank(base, part, self.users[user][name + A], self.users[user][name + B])
                for (user, _), part in zip(self._order, parts, strict=True)
            ]
            return (output + torch.cat(moves) * self._strength).to(output.dtype)

        return add


def _low_rank(base: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute B A x as PEFT does for this kind of layer."""
    x = x.to(a.dtype)
    if isinstance(base, nn.Conv2d):
        inner = functional.conv2d(x, a, None, base.stride, base.padding, base.dilation)
        return functional.conv2d(inner, b)
    return functional.linear(functional.linear(x, a), b)
