"""Builds the networks of a U-Net checkpoint, and calls its denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .spec import UNetSpec
from .text import CONTEXT, POOLED, TIME_IDS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..base.conditioning import Conditioning


@dataclass(frozen=True, slots=True)
class UNetNetworks:
    """The `Networks` of a U-Net family."""

    spec: UNetSpec

    def build(self, component: str, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import AutoencoderKL, UNet2DConditionModel

        from ..clip.networks import build_text_encoder

        config = {key: value for key, value in config.items() if not key.startswith("_")}
        if component == "unet":
            return UNet2DConditionModel.from_config(config)  # type: ignore[return-value]
        if component == "vae":
            return AutoencoderKL.from_config(config)  # type: ignore[return-value]
        return build_text_encoder(config, projected=self._projected(component))

    def fill_buffers(self, network: nn.Module, device: torch.device) -> None:
        from ..clip.networks import fill_position_ids

        fill_position_ids(network, device)

    def dtype(self, component: str, wanted: torch.dtype) -> torch.dtype:
        import torch

        overflows = component == "vae" and not self.spec.half_vae and wanted == torch.float16
        return torch.float32 if overflows else wanted

    def tokenizers(self, places: Sequence[Path] = ()) -> tuple[Any, ...]:
        from ..clip.networks import load_tokenizer

        return tuple(load_tokenizer(self.spec.config(text.tokenizer)) for text in self.spec.texts)

    def text_encoder(
        self, who: str, component: str, tensors: Mapping[str, Tensor], *, skip_last: int = 0,
        device: torch.device | str = "cpu",
    ) -> nn.Module:  # fmt: skip
        from ..clip.networks import text_encoder_from_tensors

        return text_encoder_from_tensors(
            who, tensors, self.spec.config(component), projected=self._projected(component),
            skip_last=skip_last, device=device,
        )  # fmt: skip

    def _projected(self, component: str) -> bool:
        return next(text.projected for text in self.spec.texts if text.component == component)


def denoise(denoiser: Any, latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
    """Call a UNet2DConditionModel."""
    added = None
    if POOLED in conditioning:
        added = {"text_embeds": conditioning[POOLED], "time_ids": conditioning.get(TIME_IDS)}
    return denoiser(
        latents, times, conditioning[CONTEXT], added_cond_kwargs=added, return_dict=False
    )[0]
