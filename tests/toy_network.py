"""Networks of the toy family: a flow-matching transformer that no published model resembles.

It has what the U-Net families have not: a fused q, k and v in its file, 16 latent channels with a
shift, text with a mask, and velocity as its prediction. Weights are random and small.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional


class ToyAttention(nn.Module):
    """Attention with separate projections in memory; the file has q, k and v as one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            part(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class ToyBlock(nn.Module):
    """Pre-norm transformer block over image and text tokens together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = ToyAttention(width, heads)
        self.norm_feed_forward = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm_attention(tokens), mask)
        return tokens + self.feed_forward(self.norm_feed_forward(tokens))


class ToyTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Velocity of noised latents [batch, channels, h, w] at times from 0 to 1000."""

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        width: int = 32,
        heads: int = 2,
        depth: int = 2,
        text_width: int = 24,
        sample_size: int = 8,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.embed_image = nn.Linear(in_channels, width)
        self.embed_text = nn.Linear(text_width, width)
        self.embed_time = nn.Linear(width, width)
        self.blocks = nn.ModuleList(ToyBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.project_out = nn.Linear(width, in_channels)

    def forward(self, latents: Tensor, times: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        batch, _, height, width = latents.shape
        image = self.embed_image(latents.flatten(2).transpose(1, 2))
        image = image + _positions(height * width, image.shape[-1]).to(image)
        image = image + self.embed_time(_waves(times, image.shape[-1]).to(image))[:, None]
        tokens = torch.cat([image, self.embed_text(context)], dim=1)
        seen = torch.cat([mask.new_ones(batch, image.shape[1]), mask], dim=1).bool()
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                tokens = self._gradient_checkpointing_func(block, tokens, seen)
            else:
                tokens = block(tokens, seen)
        image = self.project_out(self.norm_out(tokens[:, : height * width]))
        return image.transpose(1, 2).unflatten(2, (height, width))


class ToyTextEncoder(nn.Module):
    """Embeds token ids and mixes each with the mean of those that the mask keeps."""

    def __init__(self, vocabulary: int = 128, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        tokens = self.embedding(ids)
        weights = mask.to(tokens)[..., None]
        mean = (tokens * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
        return tokens + self.mix(mean)


class ToyTokenizer:
    """Characters as ids with a mask, cut and padded to a fixed length."""

    longest = 12

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        cut = [[min(ord(c), 127) for c in prompt[: self.longest]] for prompt in prompts]
        ids = torch.zeros(len(prompts), self.longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), self.longest)
        for row, codes in enumerate(cut):
            ids[row, : len(codes)] = torch.tensor(codes, dtype=torch.long)
            mask[row, : len(codes)] = 1
        return ids, mask


def toy_vae(**changes: Any) -> Any:
    """An AutoencoderKL with 16 latent channels, a shift, and a side a fourth of the image's."""
    from diffusers import AutoencoderKL

    config = {
        "block_out_channels": (8, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3, "layers_per_block": 1, "norm_num_groups": 4,
        "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
        "shift_factor": 0.1, "scaling_factor": 0.4, "sample_size": 32,
    }  # fmt: skip
    return AutoencoderKL(**(config | changes))


def _positions(count: int, width: int) -> Tensor:
    return _waves(torch.arange(count), width)


def _waves(values: Tensor, width: int) -> Tensor:
    """[n] values as sines and cosines, [n, width]."""
    rates = torch.exp(-math.log(1000) * torch.arange(width // 2, device=values.device) * 2 / width)
    angles = values[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
