"""Latents of Qwen-Image's VAE, for one moment of a video; each channel has its own mean and
deviation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..base.autoencoder import from_posterior
from ..base.latent_space import LatentSpace
from .config import PATCH, VAE, published

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Latents:
    """The `Latents` of Anima: [batch, 16, height / 8, width / 8]."""

    def space(self, config: Mapping[str, Any]) -> LatentSpace:
        known = {**published(VAE), **config}
        return LatentSpace(
            channels=known["z_dim"],
            stride=2 ** len(known["temperal_downsample"]),
            scale=tuple(1 / deviation for deviation in known["latents_std"]),
            shift=tuple(known["latents_mean"]),
            patch=PATCH,
        )

    def encode(
        self, vae: Any, images: Tensor, space: LatentSpace, noise: torch.Generator | None
    ) -> Tensor:
        latents = from_posterior(vae, images.unsqueeze(2), noise)
        return space.normalised(latents.squeeze(2))

    def decode(self, vae: Any, latents: Tensor, space: LatentSpace) -> Tensor:
        raw = space.raw(latents).unsqueeze(2)
        return vae.decode(raw, return_dict=False)[0].squeeze(2)
