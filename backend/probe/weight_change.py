"""Measures how far an attack moved a model's weights: ‖W' − W‖ / ‖W‖ of each network.

W are the weights that the attack found, all of the network's, and W' those that are evaluated, so
that a fresh adapter counts by the change it makes (s·B·A, which is 0 at its start) and not by its
factors. Norms are Frobenius norms, in float32. The ratio is each model's own: a hardened model
whose weights are larger has to move further for the same figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

Changes = Mapping[str, float]  # component to relative change
ChangeCallback = Callable[[Changes], None]


class ChangeMeter:
    """Sums up the changes of networks' weights, replaced one by one.

    networks: by component, as the attack finds them.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._norms = {name: squares(part.parameters()) for name, part in networks.items()}
        self._changes = dict.fromkeys(networks, 0.0)

    def add(self, component: str, old: Tensor, new: Tensor) -> None:
        """Add the change of one weight."""
        self._changes[component] += squares([new.float() - old.float()])

    def found(self) -> dict[str, float]:
        """Return the relative change of each network so far."""
        return {name: ratio(self._changes[name], self._norms[name]) for name in self._norms}


def adapter_squares(network: nn.Module, adapter: str) -> float:
    """Return ‖ΔW‖² of a PEFT adapter with its present values, over all its modules."""
    layers = (layer for layer in network.modules() if isinstance(layer, BaseTunerLayer))
    return sum(squares([_layer_change(layer, adapter)]) for layer in layers)


def squares(tensors: Iterable[Tensor]) -> float:
    """Return the sum of the squares of all elements."""
    with torch.no_grad():
        return sum(float(tensor.float().pow(2).sum()) for tensor in tensors)


def ratio(change: float, norm: float) -> float:
    """Return the square root of change / norm; of a network of zeros, 0 or infinity."""
    if norm == 0:
        return math.inf if change else 0.0
    return math.sqrt(change / norm)


def _layer_change(layer: BaseTunerLayer, adapter: str) -> Tensor:
    """Return ΔW in float32. DoRA: m · (W + s·B·A) / ‖W + s·B·A‖ − W, the norm by output."""
    with torch.no_grad():
        change = layer.get_delta_weight(adapter).float()  # type: ignore[operator]
        magnitudes = getattr(layer, "lora_magnitude_vector", {})
        if adapter not in magnitudes:
            return change
        weight = layer.get_base_layer().weight.float()  # type: ignore[union-attr, operator]
        total = weight + change
        norms = total.flatten(1).norm(dim=1)
        factor = magnitudes[adapter].weight.float().flatten() / norms
        return total * factor.view(-1, *[1] * (total.dim() - 1)) - weight
