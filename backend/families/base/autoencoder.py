"""Latents of diffusers' AutoencoderKL, whatever its channels and stride."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .latent_space import LatentSpace

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class AutoencoderLatents:
    """The `Latents` of a family with an AutoencoderKL. published: its config as published. patch:
    as in `LatentSpace`."""

    published: Mapping[str, Any]
    patch: int = 1

    def space(self, config: Mapping[str, Any]) -> LatentSpace:
        known = {**self.published, **config}
        return LatentSpace(
            channels=known.get("latent_channels", 4),
            stride=2 ** (len(known["block_out_channels"]) - 1),
            scale=known["scaling_factor"],
            shift=known.get("shift_factor") or 0.0,
            patch=self.patch,
        )

    def encode(
        self, vae: Any, images: Tensor, space: LatentSpace, noise: torch.Generator | None
    ) -> Tensor:
        return space.normalised(from_posterior(vae, images, noise))

    def decode(self, vae: Any, latents: Tensor, space: LatentSpace) -> Tensor:
        return vae.decode(space.raw(latents), return_dict=False)[0]


def from_posterior(vae: Any, images: Tensor, noise: torch.Generator | None) -> Tensor:
    """Return the VAE's own latents of images: the posterior's mean or, with `noise`, a sample."""
    import torch

    posterior = vae.encode(images).latent_dist
    latents = posterior.mean
    if noise is not None:
        drawn = torch.randn(latents.shape, generator=noise).to(latents)
        latents = latents + posterior.std * drawn
    return latents
