"""The reference of every evaluation: images and predictions of the original before any attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Reference:
    """Images, predictions and errors of the original.

    images: of the compared kinds, [n, 3, height, width] in 8 bit. predictions: on the retain
    set, for the drift. errors: of each scorer of models, by its name.
    """

    images: dict[str, Tensor] = field(default_factory=dict)
    predictions: Tensor | None = None
    errors: dict[str, Tensor] = field(default_factory=dict)

    def to_tensors(self) -> dict[str, Tensor]:
        tensors = {f"images.{kind}": images for kind, images in self.images.items()}
        tensors |= {f"errors.{name}": errors for name, errors in self.errors.items()}
        return tensors if self.predictions is None else tensors | {"predictions": self.predictions}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Reference:
        found = Reference(predictions=tensors.get("predictions"))
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "images":
                found.images[rest] = tensor
            elif part == "errors":
                found.errors[rest] = tensor
        return found
