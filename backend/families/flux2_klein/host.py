"""FLUX.2 klein as ComfyUI holds it: its CLIP gives the finished conditioning, its VAE latents that
are normalised patches already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..base.autoencoder import AutoencoderLatents
from ..base.family import HostNames
from .config import TOKENS
from .networks import CONTEXT

if TYPE_CHECKING:
    from torch import Tensor

    from ..base.conditioning import Conditioning


def read_conditioning(embedding: Tensor, options: Mapping[str, Any]) -> Conditioning:
    """[batch, tokens, 3 · width] to 512 tokens, as the denoiser has them in ComfyUI: a shorter one
    begins with zeros there. A longer one keeps its first tokens, as a long prompt does."""
    from torch.nn.functional import pad

    from ..base.conditioning import Conditioning

    kept = embedding[:, :TOKENS]
    return Conditioning({CONTEXT: pad(kept, (0, 0, TOKENS - kept.shape[1], 0))})


HOST = HostNames(
    ("qwen3_4b",),
    -1,
    inside="model.",
    conditioning=read_conditioning,
    latents=AutoencoderLatents(
        {"latent_channels": 128, "block_out_channels": (0,) * 5, "scaling_factor": 1.0}
    ),
    loader="Load CLIP with Qwen3 4B and the type flux2",
)
