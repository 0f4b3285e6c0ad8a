"""Adapts ComfyUI's VAE to the interface of diffusers' AutoencoderKL."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ...backend.errors import CheckpointError


class HostVae(nn.Module):
    """The part of AutoencoderKL's interface that the backend uses, served by the connected VAE.

    The VAE's weights are not registered here: moving or casting this module moves a single number,
    and ComfyUI loads, tiles and unloads its VAE as usual. TAESD and other kinds work too.
    """

    def __init__(self, vae: Any, scale: float | tuple[float, ...]) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.config = SimpleNamespace(scaling_factor=scale)
        self._host: Any = vae

    def encode(self, images: Tensor) -> Any:
        """Encode images from -1 to 1, [n, 3, height, width], or [n, 3, 1, height, width] for a VAE
        of videos; only the mean is known, std is 0."""
        pixels = ((images + 1) / 2).clamp(0, 1).movedim(1, -1).cpu()
        if images.ndim == 5:  # the host would take several pictures for moments of one video
            mean = torch.cat([self._host.encode(one.squeeze(1)) for one in pixels.split(1)])
        else:
            mean = self._host.encode(pixels)
        if mean.ndim != images.ndim:
            raise CheckpointError(
                f"the VAE encodes a picture to the shape {list(mean.shape[1:])}, and the MODEL "
                f"reads one of {images.ndim - 1} dimensions: connect the VAE of its family "
                "(Load VAE)"
            )
        mean = mean.to(images.device, torch.float32).clone()
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.zeros_like(mean)))

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Decode unscaled latents, [n, channels, (1,) height, width], to images from -1 to 1."""
        pixels = self._host.decode(latents).to(latents.device, torch.float32)
        return (pixels.movedim(-1, 1) * 2 - 1,)

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield those of ComfyUI's VAE, which identify its encodings in the cache."""
        yield from self._host.first_stage_model.named_parameters()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield self.place
