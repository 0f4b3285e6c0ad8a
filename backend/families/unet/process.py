"""The noise process that a scheduler config in diffusers' form describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..base.process import NoiseProcess, discrete_process, scaled_linear_alphas_cumprod

# √ᾱ of the last step is 0 in theory; this keeps divisions by it finite (diffusers does the same).
_LAST_ALPHA = 2.0**-24


def noise_schedule(file: str, config: Mapping[str, Any]) -> NoiseProcess:
    """Build the schedule; raise for kinds other than those of SD 1.x, 2.x and SDXL."""
    kind = config.get("beta_schedule", "scaled_linear")
    steps = config.get("num_train_timesteps", 1000)
    if config.get("trained_betas") or kind not in ("scaled_linear", "linear"):
        raise CheckpointError(
            f"{file}: its noise schedule is {kind!r}"
            + (" with betas of its own" if config.get("trained_betas") else "")
            + "; only the (scaled) linear one of Stable Diffusion is supported"
        )
    if type(steps) is not int or not 1 < steps <= 10_000:
        raise CheckpointError(f"{file}: its noise schedule has {steps!r} steps, not 1000 or so")
    start, end = config.get("beta_start", 0.00085), config.get("beta_end", 0.012)
    if kind == "scaled_linear":
        alphas = scaled_linear_alphas_cumprod(steps, start, end)
    else:
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
        alphas = torch.cumprod(1 - betas, dim=0).float()
    if config.get("rescale_betas_zero_snr"):
        alphas = zero_terminal_snr(alphas)
    return discrete_process(alphas, config["prediction_type"])


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Rescale ᾱ so that the last step is pure noise and the first stays: [steps], float32.

    √ᾱ' = (√ᾱ − √ᾱ_T) · √ᾱ_1 / (√ᾱ_1 − √ᾱ_T). Source: Lin et al., arXiv:2305.08891, Algorithm 1.
    """
    root = alphas_cumprod.double().sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas = (root**2).float()
    alphas[-1] = _LAST_ALPHA
    return alphas
