"""A loaded checkpoint: the networks, the noise process, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..families import Family
from ..families.base.conditioning import Conditioning
from ..families.base.family import Latents, Texts
from ..families.base.latent_space import LatentSpace
from ..families.base.process import NoiseProcess

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(slots=True)
class Model:
    """The parts of a loaded text-to-image checkpoint.

    denoiser: its base weights never require gradients outside a full simulation.
    text_encoders, tokenizers: as many as the family has.
    process: how latents are noised, and what the denoiser predicts.
    resolution: native side in pixels (512, 768, 1024; 64 for the demo).
    source: the checkpoint file or diffusers folder; None where a host handed the model over.
    decided: what the caller said that the source predicts, which whoever reads it again needs too.
    spare_encoders: drop text encoders and VAE once the data are encoded and nothing needs them,
        which frees their memory.
    latent_space: of the VAE; by default read off its config.
    texts, latents: how prompts and images are encoded; by default as the family does.
    """

    family: Family
    denoiser: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    vae: AutoencoderKL
    process: NoiseProcess
    resolution: int
    source: Path | None = None
    spare_encoders: bool = False
    latent_space: LatentSpace = field(default=None)  # type: ignore[assignment]
    decided: str = ""
    texts: Texts = field(default=None)  # type: ignore[assignment]
    latents: Latents = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.texts = self.texts or self.family.texts
        self.latents = self.latents or self.family.latents
        if self.latent_space is None:
            config: Any = getattr(self.vae, "config", {})
            config = config if isinstance(config, Mapping) else vars(config)
            self.latent_space = self.latents.space(config)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device  # diffusers' own walks through all modules

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the denoiser's weights, before they were quantised if they are."""
        for module in self.denoiser.modules():
            kept = getattr(module, "unpacked_type", None)
            own = (part.dtype for part in module._parameters.values() if part is not None)
            if found := kept or next(own, None):
                return found
        raise ValueError("the denoiser has no weights")

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the denoiser's prediction, with whatever adapters are switched on."""
        return self.family.denoise(self.denoiser, latents, timesteps, conditioning)
