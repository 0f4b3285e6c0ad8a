"""What the backend asks of a denoiser, and the conditioning it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the denoiser is told of each sample.

    context: text embeddings, [batch, tokens, width].
    pooled: SDXL's pooled text embedding, [batch, 1280]; None elsewhere.
    time_ids: SDXL's (original height, width, crop top, left, target height, width),
        [batch, 6]; None elsewhere.
    """

    context: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, index: Tensor | slice) -> Conditioning:
        return self._each(lambda part: part[index])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        return self._each(lambda part: part.to(device, dtype))

    def onto(self, device: torch.device) -> Conditioning:
        """On the device, as `onto` moves a tensor."""
        return self._each(lambda part: onto(part, device))

    def expand(self, batch: int) -> Conditioning:
        """One sample's conditioning repeated (without a copy) for a batch."""
        return self._each(lambda part: part.expand(batch, *part.shape[1:]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(
            change(self.context),
            None if self.pooled is None else change(self.pooled),
            None if self.time_ids is None else change(self.time_ids),
        )

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Batches one after the other; all must have the same optional parts."""
        return Conditioning(
            torch.cat([part.context for part in parts]),
            _joined([part.pooled for part in parts]),
            _joined([part.time_ids for part in parts]),
        )


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. To a GPU it goes through pinned memory, so that the host does not
    wait for what the GPU is still at."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    if given and len(given) != len(parts):
        raise ValueError("some of the conditionings have a part that others lack")
    return torch.cat(given) if given else None


class Denoiser(Protocol):
    """Predicts ε or v of noised latents.

    latents [batch, channels, height, width]; timesteps [batch], integers from 0 to 999;
    returns the shape of `latents`.
    """

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor: ...
