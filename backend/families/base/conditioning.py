"""The conditioning of a batch: named tensors that a family fills and its denoiser reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor

_EXACT = "_ids"  # ends the names of parts that hold sizes and positions, not activations


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Named tensors, each with the batch first: embeddings, masks, pooled vectors, position ids.

    `conditioning["context"]` is one part; `conditioning[0:2]` and `conditioning[picks]` are samples
    of all parts. The length is that of the batch. Parts that are not floating point, and those
    whose name ends in `_ids`, keep their type when the others are cast: sizes in pixels would not
    stay exact in half precision.
    """

    parts: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.parts.values()), ()))

    @property
    def device(self) -> torch.device:
        """The device of the parts; all lie on one."""
        return next(iter(self.parts.values())).device

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of each part without the batch: equal where two can be joined."""
        return tuple((name, tuple(part.shape[1:])) for name, part in sorted(self.parts.items()))

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    @overload
    def __getitem__(self, index: str) -> Tensor: ...
    @overload
    def __getitem__(self, index: Tensor | slice) -> Conditioning: ...
    def __getitem__(self, index: str | Tensor | slice) -> Tensor | Conditioning:
        if isinstance(index, str):
            return self.parts[index]
        return self._each(lambda part: part[index])

    def get(self, name: str) -> Tensor | None:
        """Return one part, or None where there is no such part."""
        return self.parts.get(name)

    def beside(self, other: Conditioning) -> Conditioning:
        """Return the parts of both, for the same samples; those of `other` replace equal names."""
        return Conditioning({**self.parts, **other.parts})

    def without(self, *names: str) -> Conditioning:
        """Return the bundle with some parts left out."""
        return Conditioning({name: part for name, part in self.parts.items() if name not in names})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """Move all parts to a device, and cast those that hold activations."""
        return Conditioning(
            {
                name: part.to(device, dtype if _is_activation(name, part) else None)
                for name, part in self.parts.items()
            }
        )

    def onto(self, device: torch.device) -> Conditioning:
        """Move all parts to a device without making the host wait (see the function `onto`)."""
        return self._each(lambda part: onto(part, device))

    def expand(self, batch: int) -> Conditioning:
        """Repeat one sample's conditioning (without a copy) for a batch."""
        return self._each(lambda part: part.expand(batch, *part.shape[1:]))

    def where(self, chosen: Tensor, other: Conditioning) -> Conditioning:
        """Return `other` where `chosen`, [batch] of bool, is true; both have the same parts."""
        return Conditioning(
            {
                name: torch.where(chosen.view(-1, *[1] * (part.dim() - 1)), other[name], part)
                for name, part in self.parts.items()
            }
        )

    def mix(self, other: Conditioning, share: Tensor) -> Conditioning:
        """Return a blend of each sample with that of `other`: (1 − share) own + share other.

        share: [batch], from 0 to 1. Parts that hold no activations stay as they are.
        """

        def blend(name: str, part: Tensor) -> Tensor:
            if not _is_activation(name, part):
                return part
            return torch.lerp(part, other[name], share.to(part).view(-1, *[1] * (part.dim() - 1)))

        return Conditioning({name: blend(name, part) for name, part in self.parts.items()})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning({name: change(part) for name, part in self.parts.items()})

    @staticmethod
    def cat(batches: Sequence[Conditioning]) -> Conditioning:
        """Join batches one after the other; all must have the same parts."""
        names = list(batches[0].parts)
        if any(set(batch.parts) != set(names) for batch in batches):
            raise ValueError("some of the conditionings have a part that others lack")
        return Conditioning({name: torch.cat([batch[name] for batch in batches]) for name in names})


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device. To a GPU it goes through pinned memory, so that the host does not
    wait for what the GPU is still computing."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def _is_activation(name: str, part: Tensor) -> bool:
    return part.is_floating_point() and not name.endswith(_EXACT)
