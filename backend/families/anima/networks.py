"""Builds the networks, and calls the denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ..base.shapes import Shapes, check_same_names
from ..qwen3.network import bfloat16_or_wider, build_qwen3, encoded_by_host, fill_frequencies
from ..qwen3.tokenizer import TokenizerPlace, load_tokenizer
from .config import CONDITIONER, TEXT, VAE, conditioner_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..base.conditioning import Conditioning

CONTEXT = "context"
_OURS = "sample_size"  # a field of this package, which the VAE's class does not have
T5 = TokenizerPlace(
    "T5",
    ("t5_tokenizer", "t5_old", "t5"),
    Path("comfy", "text_encoders", "t5_tokenizer"),
    (("tokenizer.json",), ("spiece.model",)),
    ("</s>", "<extra_id_0>"),
)


class Networks:
    """The `Networks` of Anima."""

    def build(self, component: str, config: Mapping[str, Any]) -> nn.Module:
        plain = {k: v for k, v in config.items() if not k.startswith("_") and k != _OURS}
        try:
            if component == TEXT:
                return build_qwen3(plain)
            from diffusers import (
                AnimaTextConditioner,
                AutoencoderKLQwenImage,
                CosmosTransformer3DModel,
            )
        except ImportError as error:
            raise CheckpointError(
                "Anima needs diffusers 0.39 or newer and transformers 4.51 or newer "
                f"({error}): update them"
            ) from None
        if component == CONDITIONER:
            return AnimaTextConditioner.from_config(plain)  # type: ignore[return-value]
        if component == VAE:
            return AutoencoderKLQwenImage.from_config(plain)  # type: ignore[return-value]
        return CosmosTransformer3DModel.from_config(_with_mask(plain))  # type: ignore[return-value]

    def fill_buffers(self, network: nn.Module, device: torch.device) -> None:
        rotary: Any = getattr(network, "rotary_emb", None)
        if rotary is None:
            return
        if hasattr(network.config, "hidden_size"):
            fill_frequencies(network, device)
        else:
            _fill_conditioner(network, device)

    def dtype(self, component: str, wanted: torch.dtype) -> torch.dtype:
        return bfloat16_or_wider(wanted, small_vae=component == VAE)

    def tokenizers(self, places: Sequence[Path] = ()) -> tuple[Any, ...]:
        return load_tokenizer("Anima", places), load_tokenizer("Anima", places, T5)

    def text_encoder(
        self, who: str, component: str, tensors: Mapping[str, Tensor], *, skip_last: int = 0,
        device: torch.device | str = "cpu",
    ) -> nn.Module:  # fmt: skip
        if component != CONDITIONER:
            raise encoded_by_host(who, "Anima")
        return _conditioner_from(who, tensors, device)


def denoise(denoiser: Any, latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
    """Call a CosmosTransformer3DModel: velocity of latents [batch, 16, height, width].

    An image is a video of one moment. The network takes σ as it is. One more channel is 1 where an
    image was padded in training: nowhere here.
    """
    import torch

    video = latents.unsqueeze(2)
    whole = torch.zeros_like(video[:, :1])
    predicted = denoiser(
        hidden_states=torch.cat([video, whole], dim=1),
        timestep=times / 1000,
        encoder_hidden_states=conditioning[CONTEXT],
        return_dict=False,
    )[0]
    return predicted.squeeze(2)


def _conditioner_from(
    who: str, tensors: Mapping[str, Tensor], device: torch.device | str
) -> nn.Module:
    """Build a text conditioner of the tensors that a host holds, without their prefix."""
    import torch

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with torch.device("meta"):
        network = Networks().build(CONDITIONER, conditioner_config(Shapes(who, shapes)))
    check_same_names(who, set(network.state_dict()), set(tensors))
    state = {name: tensor.to(device) for name, tensor in tensors.items()}
    network.load_state_dict(state, strict=True, assign=True)
    _fill_conditioner(network, torch.device(device))
    return network.eval().requires_grad_(False)


def _with_mask(config: dict[str, Any]) -> dict[str, Any]:
    """Count the channel of the padding mask among the inputs: `denoise` appends it, as diffusers
    itself would resize a mask with torchvision, which may not be installed."""
    if not config.get("concat_padding_mask", True):
        return config
    return config | {"concat_padding_mask": False, "in_channels": config["in_channels"] + 1}


def _fill_conditioner(network: Any, device: torch.device) -> None:
    """Compute the frequencies of the conditioner's positions, which follow from its config."""
    import torch

    heads = network.config.num_attention_heads
    with torch.device(device):
        network.rotary_emb = type(network.rotary_emb)(network.config.model_dim // heads)
