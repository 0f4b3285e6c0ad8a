"""Tensor names in the original layout (LDM, SGM) and in diffusers, both ways, for any size.

A checkpoint in one file carries the names of CompVis' and Stability's code:

    model.diffusion_model.*                     the U-Net
    first_stage_model.*                         the VAE
    cond_stage_model.transformer.text_model.*   SD 1.x: CLIP as transformers names it
    cond_stage_model.model.*                    SD 2.x: OpenCLIP's own names
    conditioner.embedders.{0,1}.*               SDXL: one of each

The tables below are written out from a config in diffusers' form (plain dict), so they hold for
every width and depth. They are checked against diffusers' own converters in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

UNET = "model.diffusion_model."
VAE = "first_stage_model."

# What a diffusers tensor is of the LDM tensor: all of it; a 1 × 1 convolution's weight as a matrix;
# the transpose; or the first, second, third of three equal blocks of rows.
Part = Literal["whole", "matrix", "transposed", "q", "k", "v"]
Names = Iterator[tuple[str, str]]  # (LDM name, diffusers name)


class Source(NamedTuple):
    """Where a diffusers tensor lies in the file, and which part of that tensor it is."""

    name: str
    part: Part = "whole"


def unet_ldm_names(unet_config: Mapping[str, Any]) -> dict[str, str]:
    """Diffusers name to LDM name (with `model.diffusion_model.`) of every tensor of a U-Net."""
    return {diffusers: UNET + ldm for ldm, diffusers in unet_names(unet_config)}


def vae_sources(vae_config: Mapping[str, Any], prefix: str = VAE) -> dict[str, Source]:
    """Diffusers name to its source in an LDM file, for every tensor of an AutoencoderKL."""
    return {
        diffusers: Source(prefix + ldm, "matrix" if _is_attention_matrix(ldm) else "whole")
        for ldm, diffusers in vae_names(vae_config)
    }


def clip_sources(text_config: Mapping[str, Any], prefix: str) -> dict[str, Source]:
    """Diffusers name to source of a CLIP text encoder kept in transformers' names.

    prefix: up to `embeddings.`, e.g. `cond_stage_model.transformer.text_model.`.
    """
    return {"text_model." + name: Source(prefix + name) for name in clip_names(text_config)}


def open_clip_sources(
    text_config: Mapping[str, Any], prefix: str, *, projection: bool
) -> dict[str, Source]:
    """Diffusers name to source of a text encoder in OpenCLIP's names.

    prefix: e.g. `cond_stage_model.model.`. projection: with `text_projection` (SDXL).
    """
    found = {
        "text_model." + diffusers: Source(prefix + ldm, part)
        for ldm, diffusers, part in open_clip_names(text_config)
    }
    if projection:
        found["text_projection.weight"] = Source(prefix + "text_projection", "transposed")
    return found


# --- the U-Net ---------------------------------------------------------------------------------


def unet_names(config: Mapping[str, Any]) -> Names:
    """Every tensor of the U-Net, without prefix, from UNet2DConditionModel's config."""
    widths = list(config["block_out_channels"])
    levels, layers = len(widths), config["layers_per_block"]
    down_depths, mid_depth, up_depths = transformer_depths(config)

    yield from _both("time_embed.0", "time_embedding.linear_1")
    yield from _both("time_embed.2", "time_embedding.linear_2")
    if config.get("addition_embed_type") == "text_time":
        yield from _both("label_emb.0.0", "add_embedding.linear_1")
        yield from _both("label_emb.0.2", "add_embedding.linear_2")
    yield from _both("input_blocks.0.0", "conv_in")

    index, channels = 1, widths[0]
    for level, width in enumerate(widths):
        for layer in range(layers):
            block = f"down_blocks.{level}"
            here = f"input_blocks.{index}"
            yield from _resnet(f"{here}.0", f"{block}.resnets.{layer}", shortcut=channels != width)
            yield from _transformer(f"{here}.1", f"{block}.attentions.{layer}", down_depths[level])
            index, channels = index + 1, width
        if level < levels - 1:
            yield from _both(
                f"input_blocks.{index}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            )
            index += 1

    yield from _resnet("middle_block.0", "mid_block.resnets.0", shortcut=False)
    yield from _transformer("middle_block.1", "mid_block.attentions.0", mid_depth)
    yield from _resnet("middle_block.2", "mid_block.resnets.1", shortcut=False)

    index = 0
    for level in range(levels):  # a skip connection is always concatenated, so always a shortcut
        for layer in range(layers + 1):
            block, here = f"up_blocks.{level}", f"output_blocks.{index}"
            yield from _resnet(f"{here}.0", f"{block}.resnets.{layer}", shortcut=True)
            yield from _transformer(f"{here}.1", f"{block}.attentions.{layer}", up_depths[level])
            if layer == layers and level < levels - 1:
                slot = 2 if up_depths[level] else 1
                yield from _both(f"{here}.{slot}.conv", f"{block}.upsamplers.0.conv")
            index += 1

    yield from _both("out.0", "conv_norm_out")
    yield from _both("out.2", "conv_out")


def transformer_depths(config: Mapping[str, Any]) -> tuple[list[int], int, list[int]]:
    """Transformer blocks per attention of each down block, of the middle, of each up block.

    0 where a block has no attention.
    """
    levels = len(config["block_out_channels"])
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * levels if isinstance(depths, int) else list(depths)
    reverse = config.get("reverse_transformer_layers_per_block") or depths[::-1]

    def with_attention(block_types: Any, depths: list[int]) -> list[int]:
        pairs = zip(block_types, depths, strict=True)
        return [depth if kind.startswith("CrossAttn") else 0 for kind, depth in pairs]

    return (
        with_attention(config["down_block_types"], depths),
        depths[-1],
        with_attention(config["up_block_types"], list(reverse)),
    )


def _resnet(ldm: str, diffusers: str, *, shortcut: bool) -> Names:
    yield from _both(f"{ldm}.in_layers.0", f"{diffusers}.norm1")
    yield from _both(f"{ldm}.in_layers.2", f"{diffusers}.conv1")
    yield from _both(f"{ldm}.emb_layers.1", f"{diffusers}.time_emb_proj")
    yield from _both(f"{ldm}.out_layers.0", f"{diffusers}.norm2")
    yield from _both(f"{ldm}.out_layers.3", f"{diffusers}.conv2")
    if shortcut:
        yield from _both(f"{ldm}.skip_connection", f"{diffusers}.conv_shortcut")


def _transformer(ldm: str, diffusers: str, depth: int) -> Names:
    """Inside a transformer both layouts agree; `depth` 0 is none at all."""
    if not depth:
        return
    for name in ("norm", "proj_in", "proj_out"):
        yield from _both(f"{ldm}.{name}", f"{diffusers}.{name}")
    for block in range(depth):
        inner = f"transformer_blocks.{block}"
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v"):
                leaf = f"{inner}.{attention}.{name}.weight"
                yield f"{ldm}.{leaf}", f"{diffusers}.{leaf}"
            leaf = f"{inner}.{attention}.to_out.0"
            yield from _both(f"{ldm}.{leaf}", f"{diffusers}.{leaf}")
        for name in ("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"):
            yield from _both(f"{ldm}.{inner}.{name}", f"{diffusers}.{inner}.{name}")


# --- the VAE -----------------------------------------------------------------------------------


def vae_names(config: Mapping[str, Any]) -> Names:
    """Every tensor of the VAE, without prefix, from AutoencoderKL's config.

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
            yield from _both(f"{ldm}.downsample.conv", f"{block}.downsamplers.0.conv")

    for level, width in enumerate(reversed(widths)):
        ldm, block = f"decoder.up.{last - level}", f"decoder.up_blocks.{level}"
        for layer in range(layers + 1):
            yield from _vae_resnet(
                f"{ldm}.block.{layer}", f"{block}.resnets.{layer}", shortcut=channels != width
            )
            channels = width
        if level < last:
            yield from _both(f"{ldm}.upsample.conv", f"{block}.upsamplers.0.conv")

    for side in ("encoder", "decoder"):
        mid, block = f"{side}.mid", f"{side}.mid_block"
        yield from _vae_resnet(f"{mid}.block_1", f"{block}.resnets.0", shortcut=False)
        yield from _vae_resnet(f"{mid}.block_2", f"{block}.resnets.1", shortcut=False)
        for ldm, name in _VAE_ATTENTION.items():
            yield from _both(f"{mid}.attn_1.{ldm}", f"{block}.attentions.0.{name}")
        yield from _both(f"{side}.conv_in", f"{side}.conv_in")
        yield from _both(f"{side}.norm_out", f"{side}.conv_norm_out")
        yield from _both(f"{side}.conv_out", f"{side}.conv_out")
    if config.get("use_quant_conv", True):
        yield from _both("quant_conv", "quant_conv")
    if config.get("use_post_quant_conv", True):
        yield from _both("post_quant_conv", "post_quant_conv")


_VAE_ATTENTION = {
    "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",
}  # fmt: skip
# Names that diffusers gave these layers before 0.17; folders written then are still about.
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def current_vae_name(name: str) -> str:
    """Diffusers' present name of a VAE tensor that may carry its old one."""
    before, found, after = name.partition(".attentions.0.")
    old, _, leaf = after.partition(".")
    if found and old in _OLD_VAE_ATTENTION:
        return f"{before}{found}{_OLD_VAE_ATTENTION[old]}.{leaf}"
    return name


def _vae_resnet(ldm: str, diffusers: str, *, shortcut: bool) -> Names:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield from _both(f"{ldm}.{name}", f"{diffusers}.{name}")
    if shortcut:
        yield from _both(f"{ldm}.nin_shortcut", f"{diffusers}.conv_shortcut")


def _is_attention_matrix(ldm: str) -> bool:
    return ".attn_1." in ldm and ldm.endswith(".weight") and ".norm." not in ldm


# --- text encoders -----------------------------------------------------------------------------


def clip_names(config: Mapping[str, Any]) -> Iterator[str]:
    """Every tensor of transformers' CLIPTextModel, from its config, without `text_model.`."""
    yield "embeddings.token_embedding.weight"
    yield "embeddings.position_embedding.weight"
    parts = (
        "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2",
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
    )  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        for part in parts:
            yield f"encoder.layers.{layer}.{part}.weight"
            yield f"encoder.layers.{layer}.{part}.bias"
    yield "final_layer_norm.weight"
    yield "final_layer_norm.bias"


def open_clip_names(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Part]]:
    """(OpenCLIP name, transformers name, part), without prefixes. q, k, v are stacked in one."""
    yield "token_embedding.weight", "embeddings.token_embedding.weight", "whole"
    yield "positional_embedding", "embeddings.position_embedding.weight", "whole"
    same = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    stacked: tuple[Part, ...] = ("q", "k", "v")
    for layer in range(config["num_hidden_layers"]):
        ldm, clip = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for leaf in ("weight", "bias"):
            for old, new in same.items():
                yield f"{ldm}.{old}.{leaf}", f"{clip}.{new}.{leaf}", "whole"
            for part in stacked:
                yield f"{ldm}.attn.in_proj_{leaf}", f"{clip}.self_attn.{part}_proj.{leaf}", part
    yield "ln_final.weight", "final_layer_norm.weight", "whole"
    yield "ln_final.bias", "final_layer_norm.bias", "whole"


def _both(ldm: str, diffusers: str) -> Names:
    """A layer with a weight and a bias."""
    yield f"{ldm}.weight", f"{diffusers}.weight"
    yield f"{ldm}.bias", f"{diffusers}.bias"
