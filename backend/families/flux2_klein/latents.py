"""Latents of FLUX.2: patches of 2 × 2 of the VAE's, each channel normalised by the VAE's own
statistics (a BatchNorm without weights)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..base.autoencoder import from_posterior
from ..base.latent_space import LatentSpace
from .config import VAE, published

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PATCH = 2


class Latents:
    """The `Latents` of FLUX.2 klein: [batch, 128, height / 16, width / 16]."""

    def space(self, config: Mapping[str, Any]) -> LatentSpace:
        known = {**published(VAE), **config}
        stride = 2 ** (len(known["block_out_channels"]) - 1)
        return LatentSpace(
            channels=_PATCH**2 * known["latent_channels"], stride=_PATCH * stride, scale=1.0
        )

    def encode(
        self, vae: Any, images: Tensor, space: LatentSpace, noise: torch.Generator | None
    ) -> Tensor:
        mean, std = _statistics(vae)
        return (patched(from_posterior(vae, images, noise)) - mean) / std

    def decode(self, vae: Any, latents: Tensor, space: LatentSpace) -> Tensor:
        mean, std = _statistics(vae)
        return vae.decode(unpatched(latents * std + mean), return_dict=False)[0]


def patched(latents: Tensor) -> Tensor:
    """[b, c, h, w] to [b, 4c, h / 2, w / 2], channels in the order (c, row, column)."""
    folded = latents.unflatten(3, (-1, _PATCH)).unflatten(2, (-1, _PATCH))  # b c h p w q
    return folded.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def unpatched(latents: Tensor) -> Tensor:
    """The inverse of `patched`."""
    folded = latents.unflatten(1, (-1, _PATCH, _PATCH))  # b c p q h w
    return folded.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    norm = vae.bn
    mean = norm.running_mean.view(1, -1, 1, 1)
    return mean, (norm.running_var.view(1, -1, 1, 1) + norm.eps).sqrt()
