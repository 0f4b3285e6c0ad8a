"""Merges an adapter into a loaded denoiser, and removes it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..model.model import Model
from .dense import AnyAdapter
from .in_place import put_back
from .merge import merged_weight


@contextmanager
def merged(model: Model, adapter: AnyAdapter) -> Iterator[Model]:
    """Set the model's weights to W + ΔW; on leaving, restore W bit for bit."""
    with put_back() as put:
        for name in adapter.parameters:
            weight = model.denoiser.get_parameter(name)
            put(weight, merged_weight(weight.detach(), adapter.change(name), name).weight)
        yield model
