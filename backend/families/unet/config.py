"""The configs of U-Net and VAE, read off the tensors' names and shapes in single files.

Widths, depths and layer counts follow from shapes alone. The number of heads, the groups of the
norms and the scaling of latents do not: they are the family's, unless the file's own metadata
overrides them. All results are parts of a config in diffusers' form.
"""

from __future__ import annotations

from typing import Any

from ...errors import CheckpointError
from ..base.shapes import Shapes

HEAD_WIDTH = 64  # channels per head in SD 2.x and SDXL; SD 1.x has 8 heads instead


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Return what UNet2DConditionModel must be told beyond its family's config."""
    levels: list[list[tuple[int, int]]] = [[]]  # (channels, transformer depth) of each block
    index = 1
    while True:
        if f"input_blocks.{index}.0.op.weight" in shapes:
            levels.append([])
        elif f"input_blocks.{index}.0.in_layers.2.weight" in shapes:
            width = shapes[f"input_blocks.{index}.0.in_layers.2.weight"][0]
            levels[-1].append((width, _depth(shapes, f"input_blocks.{index}.1")))
        else:
            break
        index += 1
    layers = len(levels[0])
    if any(len(level) != layers or len(set(level)) != 1 for level in levels):
        raise _unlike(shapes, "its blocks differ within a level or in number")
    widths, depths = ([level[0][i] for level in levels] for i in (0, 1))

    up_depths = []
    for level in range(len(levels)):
        first = level * (layers + 1)
        found = {_depth(shapes, f"output_blocks.{first + i}.1") for i in range(layers + 1)}
        if len(found) != 1:
            raise _unlike(shapes, "its output blocks differ within a level")
        up_depths += found
    middle = _depth(shapes, "middle_block.1")
    if not middle or (depths[-1] and depths[-1] != middle) or not any(depths):
        raise _unlike(shapes, f"its middle block has {middle} transformer blocks")

    config: dict[str, Any] = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in up_depths],
        "transformer_layers_per_block": _layers_per_block(depths, middle),
        "cross_attention_dim": shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][-1],
        "use_linear_projection": len(shapes["middle_block.1.proj_in.weight"]) == 2,
    }
    if up_depths != depths[::-1]:
        config["reverse_transformer_layers_per_block"] = [depth or 1 for depth in up_depths]
    if "label_emb.0.0.weight" in shapes:
        config["projection_class_embeddings_input_dim"] = shapes["label_emb.0.0.weight"][1]
    return config


def heads_of_width_64(widths: list[int]) -> list[int]:
    """Count heads per level in SD 2.x and SDXL; diffusers calls this `attention_head_dim`."""
    return [max(1, width // HEAD_WIDTH) for width in widths]


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Return what AutoencoderKL must be told beyond its family's config."""
    levels = shapes.count("encoder.down.*.block.0.conv1.weight")
    widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
    if not levels:
        shapes["encoder.down.0.block.0.conv1.weight"]  # names what is missing
    return {
        "block_out_channels": widths,
        "layers_per_block": shapes.count("encoder.down.0.block.*.conv1.weight"),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def _depth(shapes: Shapes, transformer: str) -> int:
    """Transformer blocks at `transformer`; 0 where there is none."""
    return shapes.count(f"{transformer}.transformer_blocks.*.attn1.to_q.weight")


def _layers_per_block(depths: list[int], middle: int) -> int | list[int]:
    """As diffusers wants it: 1 for a level without attention; the last is the middle's too."""
    found = [depth or 1 for depth in depths[:-1]] + [middle]
    return found[0] if len(set(found)) == 1 else found


def _unlike(shapes: Shapes, what: str) -> CheckpointError:
    return CheckpointError(
        f"{shapes.file}: the U-Net cannot be mapped (like those of SSD-1B or KOALA): "
        f"{what}; use an SD 1.x, SD 2.x or SDXL base checkpoint, or a fine-tune of one"
    )
