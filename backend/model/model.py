"""A loaded checkpoint: the networks, the schedule, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .denoiser import Conditioning
from .schedule import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


@dataclass(slots=True)
class Model:
    """All parts of one text-to-image checkpoint.

    family: `sd1`, `sd2` or `sdxl`.
    denoiser: its base weights never require gradients outside a full simulation.
    text_encoders, tokenizers: one each for SD 1.x and 2.x, two for SDXL.
    vae: encodes images to latents times `vae.config.scaling_factor`.
    schedule: ᾱ and the prediction type.
    source: the checkpoint file or diffusers folder; None where a host handed the model over.
    resolution: native side in pixels (512, 768, 1024; 64 for the demo).
    spare_encoders: nobody needs text encoders and VAE once the data are encoded: they are dropped
        then, which frees their memory.
    """

    family: str
    denoiser: UNet2DConditionModel
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    vae: AutoencoderKL
    schedule: NoiseSchedule
    resolution: int
    source: Path | None = None
    spare_encoders: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device  # diffusers' own walks through all modules

    @property
    def dtype(self) -> torch.dtype:
        """Type of the denoiser's weights."""
        return next(self.denoiser.parameters()).dtype

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction (ε or v), with whatever adapters are switched on."""
        added = None
        if conditioning.pooled is not None:
            added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
        return self.denoiser(
            latents, timesteps, conditioning.context, added_cond_kwargs=added, return_dict=False
        )[0]
