"""What the backend asks of a denoiser, and the conditioning it is given."""

from __future__ import annotations

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
        return Conditioning(*(None if part is None else part[index] for part in self._parts()))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        return Conditioning(
            *(None if part is None else part.to(device, dtype) for part in self._parts())
        )

    def expand(self, batch: int) -> Conditioning:
        """One sample's conditioning repeated (without a copy) for a batch."""
        return Conditioning(
            *(
                None if part is None else part.expand(batch, *part.shape[1:])
                for part in self._parts()
            )
        )

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.context, self.pooled, self.time_ids

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Batches one after the other; all must have the same optional parts."""
        columns = zip(*(part._parts() for part in parts), strict=True)
        return Conditioning(
            *(None if column[0] is None else torch.cat(column) for column in columns)
        )


class Denoiser(Protocol):
    """Predicts ε or v of noised latents.

    latents [batch, channels, height, width]; timesteps [batch], integers from 0 to 999;
    returns the shape of `latents`.
    """

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor: ...
