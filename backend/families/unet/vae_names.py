"""Names of the VAE's tensors in single files and in diffusers, for every width and depth.

A single file keeps the VAE under `first_stage_model.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.sources import Source
from .names import Names, both

VAE = "first_stage_model."


def vae_sources(vae_config: Mapping[str, Any], prefix: str = VAE) -> dict[str, Source]:
    """Diffusers name to place in a single file, of every tensor of an AutoencoderKL."""
    return {
        diffusers: Source(prefix + ldm, "matrix" if _is_attention_matrix(ldm) else "whole")
        for ldm, diffusers in vae_names(vae_config)
    }


def vae_names(config: Mapping[str, Any]) -> Names:
    """Yield every tensor of the VAE, without prefix, from AutoencoderKL's config.

    The LDM decoder numbers its levels from the finest, diffusers in the order they run.
    """
    widths, layers = list(config["block_out_channels"]), config["layers_per_block"]
    last = len(widths) - 1

    channels = widths[0]
    for level, width in enumerate(widths):
        ldm, block = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for layer in range(layers):
            yield from _vae_resnet(
                f"{ldm}.block.{layer}", f"{block}.resnets.{layer}", shortcut=channels != width
            )
            channels = width
        if level < last:
            yield from both(f"{ldm}.downsample.conv", f"{block}.downsamplers.0.conv")

    for level, width in enumerate(reversed(widths)):
        ldm, block = f"decoder.up.{last - level}", f"decoder.up_blocks.{level}"
        for layer in range(layers + 1):
            yield from _vae_resnet(
                f"{ldm}.block.{layer}", f"{block}.resnets.{layer}", shortcut=channels != width
            )
            channels = width
        if level < last:
            yield from both(f"{ldm}.upsample.conv", f"{block}.upsamplers.0.conv")

    for side in ("encoder", "decoder"):
        mid, block = f"{side}.mid", f"{side}.mid_block"
        yield from _vae_resnet(f"{mid}.block_1", f"{block}.resnets.0", shortcut=False)
        yield from _vae_resnet(f"{mid}.block_2", f"{block}.resnets.1", shortcut=False)
        for ldm, name in _VAE_ATTENTION.items():
            yield from both(f"{mid}.attn_1.{ldm}", f"{block}.attentions.0.{name}")
        yield from both(f"{side}.conv_in", f"{side}.conv_in")
        yield from both(f"{side}.norm_out", f"{side}.conv_norm_out")
        yield from both(f"{side}.conv_out", f"{side}.conv_out")
    if config.get("use_quant_conv", True):
        yield from both("quant_conv", "quant_conv")
    if config.get("use_post_quant_conv", True):
        yield from both("post_quant_conv", "post_quant_conv")


_VAE_ATTENTION = {
    "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",
}  # fmt: skip
# Names that diffusers gave these layers before 0.17; folders written then are still about.
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def current_vae_name(name: str) -> str:
    """Return diffusers' present name of a VAE tensor that may carry its old one."""
    before, found, after = name.partition(".attentions.0.")
    old, _, leaf = after.partition(".")
    if found and old in _OLD_VAE_ATTENTION:
        return f"{before}{found}{_OLD_VAE_ATTENTION[old]}.{leaf}"
    return name


def _vae_resnet(ldm: str, diffusers: str, *, shortcut: bool) -> Names:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield from both(f"{ldm}.{name}", f"{diffusers}.{name}")
    if shortcut:
        yield from both(f"{ldm}.nin_shortcut", f"{diffusers}.conv_shortcut")


def _is_attention_matrix(ldm: str) -> bool:
    return ".attn_1." in ldm and ldm.endswith(".weight") and ".norm." not in ldm
