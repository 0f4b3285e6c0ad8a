"""Builds the networks, and calls the denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ..qwen3.network import bfloat16_or_wider, build_qwen3, encoded_by_host, fill_frequencies
from ..qwen3.tokenizer import load_tokenizer
from .config import DENOISER, TEXT, VAE

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..base.conditioning import Conditioning

CONTEXT, MASK = "context", "mask"


class Networks:
    """The `Networks` of Z-Image."""

    def build(self, component: str, config: Mapping[str, Any]) -> nn.Module:
        plain = {key: value for key, value in config.items() if not key.startswith("_")}
        try:
            if component == TEXT:
                return build_qwen3(plain)
            from diffusers import AutoencoderKL, ZImageTransformer2DModel
        except ImportError as error:
            raise CheckpointError(
                "Z-Image needs diffusers 0.36 or newer and transformers 4.51 or newer "
                f"({error}): update them"
            ) from None
        if component == DENOISER:
            return ZImageTransformer2DModel.from_config(plain)  # type: ignore[return-value]
        return AutoencoderKL.from_config(plain)  # type: ignore[return-value]

    def fill_buffers(self, network: nn.Module, device: torch.device) -> None:
        if hasattr(network, "rotary_emb"):
            fill_frequencies(network, device)

    def dtype(self, component: str, wanted: torch.dtype) -> torch.dtype:
        return bfloat16_or_wider(wanted, small_vae=component == VAE)

    def tokenizers(self, places: Sequence[Path] = ()) -> tuple[Any, ...]:
        return (load_tokenizer("Z-Image", places),)

    def text_encoder(
        self, who: str, component: str, tensors: Mapping[str, Tensor], *, skip_last: int = 0,
        device: torch.device | str = "cpu",
    ) -> nn.Module:  # fmt: skip
        raise encoded_by_host(who, "Z-Image")


def denoise(denoiser: Any, latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
    """Call a ZImageTransformer2DModel: velocity of latents [batch, 16, height, width].

    The network counts time from noise to image, as 1 − σ, and predicts the opposite of the
    velocity. It takes images and captions as lists, and fills both up with vectors of its own, so
    the padding of a caption is left out.
    """
    import torch

    captions = [
        context[:length]
        for context, length in zip(conditioning[CONTEXT], _lengths(conditioning[MASK]), strict=True)
    ]
    predicted = denoiser(
        [image.unsqueeze(1) for image in latents], 1 - times / 1000, captions, return_dict=False
    )[0]
    return -torch.stack([image.squeeze(1) for image in predicted])


def _lengths(mask: Tensor) -> list[int]:
    """Tokens of each caption; all of them where nothing has a value (on the meta device)."""
    if mask.is_meta:
        return [mask.shape[1]] * mask.shape[0]
    return mask.sum(dim=1).tolist()
