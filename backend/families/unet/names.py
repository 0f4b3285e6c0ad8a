"""Names of the U-Net's tensors in single files (CompVis' and Stability's) and in diffusers.

A single file keeps the U-Net under `model.diffusion_model.`. The table is written out from a config
in diffusers' form (a plain dict), so it holds for every width and depth. The tests check it against
diffusers' own converter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

UNET = "model.diffusion_model."
Names = Iterator[tuple[str, str]]  # (name in single files, name in diffusers)


def unet_ldm_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Diffusers name to name in the file (`model.diffusion_model....`) of every tensor."""
    return {diffusers: UNET + ldm for ldm, diffusers in unet_names(config)}


def unet_names(config: Mapping[str, Any]) -> Names:
    """Yield every tensor of the U-Net, without prefix, from UNet2DConditionModel's config."""
    widths = list(config["block_out_channels"])
    levels, layers = len(widths), config["layers_per_block"]
    down_depths, mid_depth, up_depths = transformer_depths(config)

    yield from both("time_embed.0", "time_embedding.linear_1")
    yield from both("time_embed.2", "time_embedding.linear_2")
    if config.get("addition_embed_type") == "text_time":
        yield from both("label_emb.0.0", "add_embedding.linear_1")
        yield from both("label_emb.0.2", "add_embedding.linear_2")
    yield from both("input_blocks.0.0", "conv_in")

    index, channels = 1, widths[0]
    for level, width in enumerate(widths):
        for layer in range(layers):
            block = f"down_blocks.{level}"
            here = f"input_blocks.{index}"
            yield from _resnet(f"{here}.0", f"{block}.resnets.{layer}", shortcut=channels != width)
            yield from _transformer(f"{here}.1", f"{block}.attentions.{layer}", down_depths[level])
            index, channels = index + 1, width
        if level < levels - 1:
            yield from both(
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
                yield from both(f"{here}.{slot}.conv", f"{block}.upsamplers.0.conv")
            index += 1

    yield from both("out.0", "conv_norm_out")
    yield from both("out.2", "conv_out")


def transformer_depths(config: Mapping[str, Any]) -> tuple[list[int], int, list[int]]:
    """Count transformer blocks per attention of each down block, the middle and each up block.

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
    yield from both(f"{ldm}.in_layers.0", f"{diffusers}.norm1")
    yield from both(f"{ldm}.in_layers.2", f"{diffusers}.conv1")
    yield from both(f"{ldm}.emb_layers.1", f"{diffusers}.time_emb_proj")
    yield from both(f"{ldm}.out_layers.0", f"{diffusers}.norm2")
    yield from both(f"{ldm}.out_layers.3", f"{diffusers}.conv2")
    if shortcut:
        yield from both(f"{ldm}.skip_connection", f"{diffusers}.conv_shortcut")


def _transformer(ldm: str, diffusers: str, depth: int) -> Names:
    """Inside a transformer both layouts agree; `depth` 0 is none at all."""
    if not depth:
        return
    for name in ("norm", "proj_in", "proj_out"):
        yield from both(f"{ldm}.{name}", f"{diffusers}.{name}")
    for block in range(depth):
        inner = f"transformer_blocks.{block}"
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v"):
                leaf = f"{inner}.{attention}.{name}.weight"
                yield f"{ldm}.{leaf}", f"{diffusers}.{leaf}"
            leaf = f"{inner}.{attention}.to_out.0"
            yield from both(f"{ldm}.{leaf}", f"{diffusers}.{leaf}")
        for name in ("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"):
            yield from both(f"{ldm}.{inner}.{name}", f"{diffusers}.{inner}.{name}")


def both(ldm: str, diffusers: str) -> Names:
    """Yield the weight and the bias of a layer."""
    yield f"{ldm}.weight", f"{diffusers}.weight"
    yield f"{ldm}.bias", f"{diffusers}.bias"
