"""A U-Net checkpoint in a single file: which family, and its configs, from names and shapes."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ...errors import CheckpointError
from ..base.overrides import apply_overrides, are_counts, is_count, is_number, is_switch
from ..base.refuse import REFINER, UNCLIP, refused_channels
from ..base.shapes import Shapes
from ..base.stored import DECISIONS, Description, StoredFile
from ..clip.config import clip_config, open_clip_config
from .checks import check_configs, native_side
from .config import heads_of_width_64, unet_config, vae_config
from .names import UNET
from .prediction import prediction_type, wants_zero_terminal_snr
from .spec import UNetSpec, Variant
from .vae_names import VAE

_CLIP_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")
_OPEN_CLIP_PREFIXES = ("cond_stage_model.model.", "conditioner.embedders.0.model.")
_CLIP, _OPEN_CLIP = "embeddings.token_embedding.weight", "token_embedding.weight"
_V_SAMPLE_SIZE = 96  # of the 768-pixel models of SD 2.x, which are those that predict v
_SHARED_BY_SCHEDULERS = (
    "beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "steps_offset",
    "trained_betas",
)  # fmt: skip
_DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
# What the metadata key may override, and which values are ones.
_OVERRIDABLE = {
    "unet": {
        "attention_head_dim": are_counts,
        "norm_num_groups": is_count,
        "sample_size": is_count,
        "addition_time_embed_dim": is_count,
    },
    "vae": {"norm_num_groups": is_count, "scaling_factor": is_number, "sample_size": is_count},
    "text_encoder": {
        "num_attention_heads": is_count,
        "hidden_act": lambda value: value in ("quick_gelu", "gelu"),
    },
    "scheduler": {
        "prediction_type": lambda value: value in ("epsilon", "v_prediction"),
        "rescale_betas_zero_snr": is_switch,
        "beta_start": is_number,
        "beta_end": is_number,
    },
}


def variant_of_file(file: StoredFile) -> Variant | None:
    """Tell which kind of U-Net checkpoint a file is; None where it is not one."""
    if file.other:
        return None
    if UNET + "label_emb.0.0.weight" in file.tensors:
        return "sized"
    projection = file.tensors.get(UNET + "middle_block.1.proj_in.weight")
    if projection is not None and len(projection.shape) == 2:
        return "linear"
    return "linear" if _single_prefix(file.tensors) in _OPEN_CLIP_PREFIXES else "plain"


def describe_file(spec: UNetSpec, file: StoredFile) -> Description:
    """Read the configs off a file; a CheckpointError says why it cannot be used."""
    shapes = {name: entry.shape for name, entry in file.tensors.items()}
    unet = Shapes(file.name, shapes, UNET)
    if "input_blocks.0.0.weight" in unet:
        other = refused_channels(unet["input_blocks.0.0.weight"][1])
        if other:
            raise CheckpointError(other.sentence(file.name))
    prefixes = {"unet": UNET, "vae": VAE} | _text_prefixes(spec, file)
    shaped = unet_config(unet)
    if any(name.startswith(VAE + "taesd_") for name in file.tensors):
        raise CheckpointError(
            f"{file.name} has a TAESD in place of its VAE: give one with the full VAE"
        )
    configs = {name: spec.config(name) for name in (*spec.components, "scheduler")}
    configs["unet"] |= shaped
    if spec.variant != "plain":
        widths = shaped["block_out_channels"]
        configs["unet"]["attention_head_dim"] = heads_of_width_64(widths)
    configs["vae"] |= vae_config(Shapes(file.name, shapes, VAE))
    for text in spec.texts:
        own = Shapes(file.name, shapes, prefixes[text.component])
        read = open_clip_config if _OPEN_CLIP in own else clip_config
        configs[text.component] |= read(own, drop_last=spec.drops_last_layer)
    if any(name.startswith(UNET) and "cond_proj." in name for name in file.tensors):
        raise CheckpointError(
            f"{file.name} is a latent consistency model (LCM) that takes its guidance as an input: "
            "such distilled models cannot be hardened; harden the base and distil it afterwards"
        )
    _add_prediction(spec, file, configs)
    apply_overrides(file.name, configs, file.metadata, _OVERRIDABLE)
    if file.decided:
        _decide(configs["scheduler"], file.decided)
    check_configs(file.name, spec, configs)
    return Description(
        configs=configs,
        prefixes=prefixes,
        prediction=configs["scheduler"]["prediction_type"],
        resolution=native_side(configs),
    )


def _add_prediction(spec: UNetSpec, file: StoredFile, configs: dict[str, dict[str, Any]]) -> None:
    prediction = prediction_type(file, spec.variant)
    if spec.variant == "linear" and prediction == "v_prediction":
        configs["unet"]["sample_size"] = _V_SAMPLE_SIZE
    configs["scheduler"]["prediction_type"] = prediction
    if wants_zero_terminal_snr(file):
        zero = {"prediction_type": prediction, "rescale_betas_zero_snr": True}
        # PNDM, the scheduler of SD 1.x, cannot do this; DDIM can, with the same betas
        kept = {key: configs["scheduler"][key] for key in _SHARED_BY_SCHEDULERS}
        configs["scheduler"] = {**_DDIM, **kept, **zero}


def _decide(scheduler: dict[str, Any], decided: str) -> None:
    """Let the caller's decision win over `resalign.config` too."""
    decision = DECISIONS[decided]
    scheduler["prediction_type"] = decision.prediction
    scheduler.pop("rescale_betas_zero_snr", None)
    if decision.zero_snr:
        scheduler["rescale_betas_zero_snr"] = True


def _text_prefixes(spec: UNetSpec, file: StoredFile) -> dict[str, str]:
    if spec.prefixes is not None:
        first, second = spec.prefixes
        if first + _CLIP in file.tensors and second + _OPEN_CLIP in file.tensors:
            return {"text_encoder": first, "text_encoder_2": second}
        if "conditioner.embedders.0.model." + _OPEN_CLIP in file.tensors:
            raise CheckpointError(REFINER.sentence(file.name))
        if "cond_stage_model.model." + _OPEN_CLIP in file.tensors:
            raise CheckpointError(UNCLIP.sentence(file.name))
    elif prefix := _single_prefix(file.tensors):
        return {"text_encoder": prefix}
    raise CheckpointError(
        f"{file.name} lacks a text encoder (or one of SDXL's two) under the names of SD 1.x, SD "
        "2.x or SDXL: give the whole checkpoint, with U-Net, text encoder and VAE in one file"
    )


def _single_prefix(names: Container[str]) -> str:
    """Return what the names of the only text encoder begin with; empty where there is none."""
    for prefix in _CLIP_PREFIXES:
        if prefix + _CLIP in names:
            return prefix
    return next((p for p in _OPEN_CLIP_PREFIXES if p + _OPEN_CLIP in names), "")
