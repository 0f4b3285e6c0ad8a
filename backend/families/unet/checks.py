"""Configs that no network of these families could be built with, or that would do wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError
from ..base.overrides import CONFIG_KEY
from ..base.refuse import refused_channels
from ..clip.config import TOKENS, VOCABULARY
from .spec import UNetSpec


def check_configs(file: str, spec: UNetSpec, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what the networks could not be built with, or would silently do wrong."""
    unet = configs["unet"]
    texts = [configs[text.component] for text in spec.texts]
    if max(len(unet["block_out_channels"]), unet["layers_per_block"]) > 16 or any(
        text["num_hidden_layers"] > 128 for text in texts
    ):
        raise CheckpointError(f"{file}: its config has more layers than any model of its family")
    other = refused_channels(unet["in_channels"])
    if other:
        raise CheckpointError(other.sentence(file))
    width = sum(text["hidden_size"] for text in texts)
    if unet["cross_attention_dim"] != width:
        raise CheckpointError(
            f"{file}: its U-Net reads text embeddings of width {unet['cross_attention_dim']}, but "
            f"its text encoders give {width}; parts of two families were put together"
        )
    for text in texts:
        if text["vocab_size"] < VOCABULARY or text["max_position_embeddings"] != TOKENS:
            raise CheckpointError(
                f"{file}: its text encoder knows {text['vocab_size']} tokens and "
                f"{text['max_position_embeddings']} positions, not CLIP's {VOCABULARY} and "
                f"{TOKENS}; such models are not supported"
            )
    for name in ("unet", "vae"):
        groups = configs[name].get("norm_num_groups", 32)
        if any(channels % groups for channels in configs[name]["block_out_channels"]):
            raise CheckpointError(
                f"{file}: the {name} has widths {configs[name]['block_out_channels']}, which "
                f"{groups} groups do not divide; state them in the metadata key {CONFIG_KEY}, e.g. "
                f'{{"{name}": {{"norm_num_groups": 8}}}}'
            )
    kind = configs["scheduler"]["prediction_type"]
    if kind not in ("epsilon", "v_prediction"):
        raise CheckpointError(
            f"{file} predicts {kind!r}; only epsilon and v_prediction models can be hardened"
        )
    if kind == "epsilon" and configs["scheduler"].get("rescale_betas_zero_snr"):
        raise CheckpointError(
            f"{file} says that it predicts ε and that its schedule ends in pure noise, where ε "
            "tells nothing of the image: correct its metadata or marker keys (`v_pred`, `ztsnr`), "
            "or decide with --prediction"
        )
    _check_vae(file, configs["vae"], unet["in_channels"])


def _check_vae(file: str, vae: Mapping[str, Any], channels: int) -> None:
    """Refuse a VAE whose latents are not (z - shift_factor) * scaling_factor."""
    kind = vae.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise CheckpointError(
            f"{file}: its VAE is {kind!r} (_class_name); only AutoencoderKL is supported: give the "
            "full VAE of the model"
        )
    for name in ("latents_mean", "latents_std"):
        if vae.get(name) is not None:
            raise CheckpointError(
                f"{file}: its VAE has {name}, so each channel of its latents is normalised by "
                "itself (as in Playground 2.5); such models cannot be hardened"
            )
    for name in ("scaling_factor", "shift_factor"):
        value = vae.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            raise CheckpointError(f"{file}: {name} of its VAE is {value!r}, not a number")
    if vae.get("scaling_factor") == 0:
        raise CheckpointError(f"{file}: scaling_factor of its VAE is 0")
    if vae.get("latent_channels", channels) != channels:
        raise CheckpointError(
            f"{file}: its VAE has {vae['latent_channels']} latent_channels, but its U-Net takes "
            f"{channels} (in_channels); parts of two models were put together"
        )


def native_side(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the native side in pixels: the latents' side times the VAE's reduction."""
    reduction = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    return int(configs["unet"]["sample_size"]) * reduction
