"""The places of a U-Net checkpoint's tensors in its files.

Tensors are called by their names in diffusers and, for text encoders, in transformers before 5.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..base.sources import Source
from ..base.stored import Checkpoint
from ..clip.names import canonical, clip_sources, open_clip_sources
from .names import unet_ldm_names, unet_names
from .spec import UNetSpec
from .vae_names import current_vae_name, vae_sources

_SCHEDULE_BUFFERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar", "log_sigmas",
    "sigmas", "denoiser.sigmas", "denoiser.log_sigmas", "model_sampling.sigmas",
    "scale_factor", "global_step", "v_pred", "ztsnr",
}  # fmt: skip
_AVERAGES = "model_ema."
# Moving averages kept from training (hardened too: checkpoint/export/copies.py), the VAE's training
# loss, parts of CLIP that text-to-image has no use for, leftovers of training tools.
_HARMLESS_PREFIXES = (
    _AVERAGES, "first_stage_model.loss.", "embedding_manager.", "cond_stage_model.model.visual.",
    "cond_stage_model.transformer.vision_model.", "cond_stage_model.transformer.visual_projection",
)  # fmt: skip
_HARMLESS_ENDS = (
    ".position_ids", ".logit_scale", ".text_projection", ".text_projection.weight", ".attn_mask",
    ".text_projection.bias",
)  # fmt: skip
_NOT_STORED = "position_ids"


@dataclass(frozen=True, slots=True)
class UNetLayout:
    """The `TensorLayout` of a U-Net family."""

    spec: UNetSpec

    def sources(self, component: str, checkpoint: Checkpoint) -> dict[str, Source]:
        if checkpoint.layout == "diffusers":
            return {
                self.canonical(component, name): Source(
                    name, "matrix" if _is_vae_attention(component, name) else "whole"
                )
                for name in checkpoint.names(component)
                if self.stored(name)
            }
        config, prefix = checkpoint.configs[component], checkpoint.prefixes[component]
        if component == "unet":
            return {name: Source(ldm) for name, ldm in unet_ldm_names(config).items()}
        if component == "vae":
            return vae_sources(config, prefix)
        if _is_open_clip(checkpoint, component):
            projected = next(t.projected for t in self.spec.texts if t.component == component)
            return open_clip_sources(config, prefix, projection=projected)
        return clip_sources(config, prefix)

    def canonical(self, component: str, name: str) -> str:
        if component == "vae":
            return current_vae_name(name)
        return name if component == "unet" else canonical(name)

    def stored(self, name: str) -> bool:
        return not name.endswith(_NOT_STORED)

    def harmless(self, checkpoint: Checkpoint, name: str) -> bool:
        if checkpoint.layout == "diffusers":
            return not self.stored(name)
        if name in _SCHEDULE_BUFFERS or name.startswith(_HARMLESS_PREFIXES):
            return True
        if name.startswith(("cond_stage_model.", "conditioner.")):
            if name.endswith(_HARMLESS_ENDS):
                return True
            if self.spec.drops_last_layer:
                unused = checkpoint.configs["text_encoder"]["num_hidden_layers"]
                prefix = checkpoint.prefixes["text_encoder"]
                open_clip = _is_open_clip(checkpoint, "text_encoder")
                layers = "transformer.resblocks" if open_clip else "encoder.layers"
                return name.startswith(f"{prefix}{layers}.{unused}.")
        return False

    def moving_averages(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Latent Diffusion keeps the average of `model.<name>` as `model_ema.<name without dots>`
        (`LitEma` in its ldm/modules/ema.py)."""
        if checkpoint.layout == "diffusers":
            return {}
        names = [source.name for source in self.sources("unet", checkpoint).values()]
        return {_AVERAGES + n.removeprefix("model.").replace(".", ""): n for n in names}

    def denoiser_sources(self, config: Mapping[str, Any]) -> dict[str, Source]:
        return {diffusers: Source(ldm) for ldm, diffusers in unet_names(config)}


def _is_open_clip(checkpoint: Checkpoint, component: str) -> bool:
    """True where a single file keeps this text encoder in OpenCLIP's names."""
    token_embedding = checkpoint.prefixes[component] + "token_embedding.weight"
    return token_embedding in checkpoint.names(component)


def _is_vae_attention(component: str, name: str) -> bool:
    """True where a folder's tensor may be a 1 × 1 convolution where there is a matrix today."""
    return component == "vae" and ".attentions." in name and name.endswith(".weight")
