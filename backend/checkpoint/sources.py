"""Where each tensor of a network lies in the files of a detected checkpoint.

Tensors are called by their names in diffusers and, for text encoders, in transformers before 5.6:
`text_model.encoder...`; later versions drop `text_model.` from some classes, old folders have other
names for the VAE's attention, and so on. All of it is settled here.
"""

from __future__ import annotations

from .detect import CheckpointInfo
from .keys import (
    Part,
    Source,
    clip_sources,
    current_vae_name,
    open_clip_sources,
    unet_ldm_names,
    vae_sources,
)

_SCHEDULE_BUFFERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar", "log_sigmas",
    "sigmas", "denoiser.sigmas", "denoiser.log_sigmas", "model_sampling.sigmas",
    "scale_factor", "global_step", "v_pred", "ztsnr",
}  # fmt: skip
# Moving averages kept from training (left untouched by the export), the VAE's training loss, parts
# of CLIP that text-to-image has no use for, leftovers of training tools.
_HARMLESS_PREFIXES = (
    "model_ema.", "first_stage_model.loss.", "embedding_manager.", "cond_stage_model.model.visual.",
    "cond_stage_model.transformer.vision_model.", "cond_stage_model.transformer.visual_projection",
)  # fmt: skip
_HARMLESS_ENDS = (
    ".position_ids", ".logit_scale", ".text_projection", ".text_projection.weight", ".attn_mask",
    ".text_projection.bias",
)  # fmt: skip


def tensor_sources(info: CheckpointInfo, component: str) -> dict[str, Source]:
    """Name in diffusers to source in the file, for all that the layout has of `component`."""
    if info.layout == "diffusers":
        found = {}
        for file in info.files[component]:
            for name in info.headers[file].tensors:
                if not name.endswith("position_ids"):
                    found[canonical_name(component, name)] = Source(
                        name, _folder_part(component, name)
                    )
        return found
    config, prefix = info.configs[component], info.prefixes[component]
    if component == "unet":
        return {name: Source(ldm) for name, ldm in unet_ldm_names(config).items()}
    if component == "vae":
        return vae_sources(config, prefix)
    if is_open_clip(info, component):
        return open_clip_sources(config, prefix, projection=component == "text_encoder_2")
    return clip_sources(config, prefix)


def canonical_name(component: str, name: str) -> str:
    """The name used here of a tensor as some version of diffusers or transformers calls it."""
    if component == "vae":
        return current_vae_name(name)
    if component != "unet" and not name.startswith(("text_model.", "text_projection.")):
        return "text_model." + name
    return name


def is_open_clip(info: CheckpointInfo, component: str) -> bool:
    """Whether a single file keeps this text encoder in OpenCLIP's names."""
    (path,) = info.files[component]
    return info.prefixes[component] + "token_embedding.weight" in info.headers[path].tensors


def harmless_extra(info: CheckpointInfo, name: str) -> bool:
    """Whether a tensor that no network has is known to do no harm; an export keeps it as it is."""
    if info.layout == "diffusers":
        return name.endswith("position_ids")
    if name in _SCHEDULE_BUFFERS or name.startswith(_HARMLESS_PREFIXES):
        return True
    if name.startswith(("cond_stage_model.", "conditioner.")):
        if name.endswith(_HARMLESS_ENDS):
            return True
        if info.family == "sd2":  # reads the last but one layer of the text encoder
            unused = info.configs["text_encoder"]["num_hidden_layers"]
            prefix = info.prefixes["text_encoder"]
            layers = (
                "transformer.resblocks" if is_open_clip(info, "text_encoder") else "encoder.layers"
            )
            return name.startswith(f"{prefix}{layers}.{unused}.")
    return False


def _folder_part(component: str, name: str) -> Part:
    """Old folders keep the VAE's attention as 1 × 1 convolutions."""
    attention = component == "vae" and ".attentions." in name and name.endswith(".weight")
    return "matrix" if attention else "whole"
