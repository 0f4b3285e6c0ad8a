"""The latent space of a model's VAE: its shape, and how the denoiser's latents are scaled.

The denoiser works on (z − shift) · scale, where z is what the VAE's encoder gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LatentSpace:
    """channels: of a latent. stride: pixels of an image per element of its latent, each way."""

    channels: int
    stride: int
    scale: float
    shift: float = 0.0

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape of the latent of an image of `height` × `width` pixels."""
        self.check_size(height, width)
        return self.channels, height // self.stride, width // self.stride

    def pixels(self, latents: Tensor) -> tuple[int, int]:
        """Return (height, width) of the image behind latents [..., h, w]."""
        return self.stride * latents.shape[-2], self.stride * latents.shape[-1]

    def check_size(self, height: int, width: int) -> None:
        """Raise a DataError unless both sides are multiples of the stride."""
        if height % self.stride or width % self.stride:
            raise DataError(
                f"images of {width} x {height} pixels: both sides must be multiples of "
                f"{self.stride}"
            )

    def normalised(self, z: Tensor) -> Tensor:
        """Return the VAE's latents z as the denoiser takes them."""
        return (z - self.shift if self.shift else z) * self.scale

    def raw(self, latents: Tensor) -> Tensor:
        """Return the denoiser's latents as the VAE's decoder takes them."""
        z = latents / self.scale
        return z + self.shift if self.shift else z
