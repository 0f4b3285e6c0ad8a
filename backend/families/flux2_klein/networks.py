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

CONTEXT = "context"


class Networks:
    """The `Networks` of FLUX.2 klein."""

    def build(self, component: str, config: Mapping[str, Any]) -> nn.Module:
        plain = {key: value for key, value in config.items() if not key.startswith("_")}
        try:
            if component == TEXT:
                return build_qwen3(plain)
            from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
        except ImportError as error:
            raise CheckpointError(
                "FLUX.2 klein needs diffusers 0.37 or newer and transformers 4.51 or newer "
                f"({error}): update them"
            ) from None
        if component == DENOISER:
            return Flux2Transformer2DModel.from_config(plain)  # type: ignore[return-value]
        return AutoencoderKLFlux2.from_config(plain)  # type: ignore[return-value]

    def fill_buffers(self, network: nn.Module, device: torch.device) -> None:
        import torch

        if hasattr(network, "rotary_emb"):
            fill_frequencies(network, device)
        for module in network.modules():
            if "num_batches_tracked" in module._buffers:
                module._buffers["num_batches_tracked"] = torch.zeros((), dtype=torch.long)

    def dtype(self, component: str, wanted: torch.dtype) -> torch.dtype:
        # The statistics that normalise latents are kept in float32, with their VAE
        return bfloat16_or_wider(wanted, small_vae=component == VAE)

    def tokenizers(self, places: Sequence[Path] = ()) -> tuple[Any, ...]:
        return (load_tokenizer("FLUX.2 klein", places),)

    def text_encoder(
        self, who: str, component: str, tensors: Mapping[str, Tensor], *, skip_last: int = 0,
        device: torch.device | str = "cpu",
    ) -> nn.Module:  # fmt: skip
        raise encoded_by_host(who, "FLUX.2 klein")


def denoise(denoiser: Any, latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
    """Call a Flux2Transformer2DModel: velocity of latents [batch, 128, height, width].

    Each position of a latent is a token, in the order of rows. The network multiplies σ by 1000
    itself. Positions have four axes (time, row, column, index of a word).
    """
    import torch

    context = conditioning[CONTEXT]
    height, width = latents.shape[-2:]
    one = torch.arange(1)
    image = torch.cartesian_prod(one, torch.arange(height), torch.arange(width), one)
    words = torch.cartesian_prod(one, one, one, torch.arange(context.shape[1]))
    predicted = denoiser(
        hidden_states=latents.flatten(2).transpose(1, 2),
        encoder_hidden_states=context,
        timestep=times / 1000,
        img_ids=image.to(latents.device),
        txt_ids=words.to(latents.device),
        guidance=None,
        return_dict=False,
    )[0]
    return predicted.transpose(1, 2).unflatten(2, (height, width))
