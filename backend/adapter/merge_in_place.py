"""An adapter written into a loaded denoiser, and taken out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..model.model import Model
from .lora import Adapter
from .merge import merged_weight


@contextmanager
def merged(model: Model, adapter: Adapter) -> Iterator[Model]:
    """Inside, the model's weights are W + ΔW; afterwards W again, to the bit."""
    weights = {name: model.unet.get_parameter(f"{name}.weight") for name in adapter.modules}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(merged_weight(weight, adapter.delta(name), name).weight)
        yield model
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
