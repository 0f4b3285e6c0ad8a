"""FLUX.2 klein as ComfyUI holds it: its CLIP gives the finished conditioning, its VAE latents that
are normalised patches already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..base.autoencoder import AutoencoderLatents
from ..base.host import HostNames, HostPrompts, to_length
from .config import TOKENS
from .networks import CONTEXT

if TYPE_CHECKING:
    from torch import Tensor

    from ..base.conditioning import Conditioning


def read_prompt(embedding: Tensor, entries: Mapping[str, Any]) -> Conditioning:
    """Bring [1, tokens, 3 · width] to 512 tokens, as the denoiser has them in ComfyUI.

    A shorter one begins with zeros there.
    """
    from ..base.conditioning import Conditioning

    return Conditioning({CONTEXT: to_length(embedding, TOKENS, at_end=False)})


HOST = HostNames(
    ("qwen3_4b",),
    -1,
    inside="model.",
    prompts=HostPrompts(read_prompt),
    latents=AutoencoderLatents(
        {"latent_channels": 128, "block_out_channels": (0,) * 5, "scaling_factor": 1.0}
    ),
    loader="Load CLIP with Qwen3 4B and the type flux2",
)
