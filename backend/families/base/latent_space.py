"""The latent space of a model's VAE: its shape, and how the denoiser's latents are scaled.

The denoiser works on (z − shift) · scale, where z is what the VAE's encoder gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LatentSpace:
    """The latent space of a VAE, as a denoiser uses it.

    channels: of a latent. stride: pixels of an image per element of its latent, each way. scale,
    shift: one number, or one for each channel. patch: elements of a latent, each way, that a
    transformer takes as one token.
    """

    channels: int
    stride: int
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...] = 0.0
    patch: int = 1

    @property
    def step(self) -> int:
        """Pixels that both sides of an image are multiples of."""
        return self.stride * self.patch

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape of the latent of an image of `height` × `width` pixels."""
        self.check_size(height, width)
        return self.channels, height // self.stride, width // self.stride

    def pixels(self, latents: Tensor) -> tuple[int, int]:
        """Return (height, width) of the image behind latents [..., h, w]."""
        return self.stride * latents.shape[-2], self.stride * latents.shape[-1]

    def check_size(self, height: int, width: int) -> None:
        """Raise a DataError unless both sides are multiples of the step."""
        if height % self.step or width % self.step:
            raise DataError(
                f"images of {width} x {height} pixels: both sides must be multiples of {self.step}"
            )

    def normalised(self, z: Tensor) -> Tensor:
        """Return the VAE's latents z as the denoiser takes them."""
        shift = _per_channel(self.shift, z)
        return (z - shift if self.shift else z) * _per_channel(self.scale, z)

    def raw(self, latents: Tensor) -> Tensor:
        """Return the denoiser's latents as the VAE's decoder takes them."""
        z = latents / _per_channel(self.scale, latents)
        return z + _per_channel(self.shift, latents) if self.shift else z


def _per_channel(value: float | tuple[float, ...], latents: Tensor) -> Any:
    """Return one number as it is, several in the shape [channels, 1, 1]."""
    if not isinstance(value, tuple):
        return value
    return latents.new_tensor(value).view(-1, 1, 1)
