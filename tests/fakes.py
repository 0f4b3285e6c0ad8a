"""Tiny networks whose training takes milliseconds on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from resalign.backend.model.denoiser import Conditioning
from resalign.backend.model.model import Model
from resalign.backend.model.schedule import NoiseSchedule, scaled_linear_alphas_cumprod


def tiny_unet(seed: int = 0, **changes: Any) -> Any:
    """A two-level U-Net with self- and cross-attention: 0.2 M weights, latents [4, 8, 8]."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(config | changes)).eval().requires_grad_(False)


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Model:
    """A model with a denoiser and a schedule only: its data are random latents."""
    return Model(
        family="sd1",
        unet=tiny_unet(seed, **changes).to(dtype),
        text_encoders=(),
        tokenizers=(),
        vae=None,  # type: ignore[arg-type]
        schedule=NoiseSchedule(scaled_linear_alphas_cumprod()),
        resolution=64,
    )


def random_conditioning(
    batch: int, seed: int = 0, width: int = 16, tokens: int = 5
) -> Conditioning:
    random = torch.Generator().manual_seed(seed)
    return Conditioning(torch.randn(batch, tokens, width, generator=random))
