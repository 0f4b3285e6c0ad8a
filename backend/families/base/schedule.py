"""The noise schedule of a model: ᾱ, diffusion of latents, and what the denoiser predicts.

Stable Diffusion's training schedule is "scaled linear": √β runs linearly from √0.00085 to
√0.012 over 1000 steps. Source: Rombach et al., arXiv:2112.10752; Salimans & Ho,
arXiv:2202.00512 for v-prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]


def scaled_linear_alphas_cumprod(
    steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tensor:
    """ᾱ of the scaled-linear schedule, [steps] in float32, falling from 1 towards 0."""
    root_betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64)
    return torch.cumprod(1 - root_betas**2, dim=0).float()


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Diffuse clean latents to their timesteps: √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε.

    Args:
        latents: x₀, [batch, ...], in the denoiser's latent space.
        noise: ε of unit variance, same shape as `latents`.
        timesteps: [batch], integers from 0 (clean) to 999 (noise).
        alphas_cumprod: ᾱ, [1000], falling from 1 towards 0.
    """
    alpha = _per_sample(alphas_cumprod, timesteps, latents)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """ᾱ ([steps], float32) and what the denoiser predicts of a noised latent."""

    alphas_cumprod: Tensor
    prediction_type: PredictionType = "epsilon"

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """√ᾱ_t · x₀ + √(1 − ᾱ_t) · ε; shapes as in :func:`add_noise`."""
        return add_noise(latents, noise, timesteps, self.alphas_cumprod)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect denoiser returns: ε, or v = √ᾱ_t · ε − √(1 − ᾱ_t) · x₀."""
        if self.prediction_type == "epsilon":
            return noise
        alpha = _per_sample(self.alphas_cumprod, timesteps, latents)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def to(self, device: torch.device | str) -> NoiseSchedule:
        return NoiseSchedule(self.alphas_cumprod.to(device), self.prediction_type)


def _per_sample(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    alpha = alphas_cumprod.to(device=like.device)[timesteps].to(like.dtype)
    return alpha.view(-1, *[1] * (like.dim() - 1))
