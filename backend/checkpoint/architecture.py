"""The shape of each network, read off the tensors' names and shapes in the original layout.

Widths, depths and layer counts follow from shapes alone; what does not (number of heads, groups of
the norms, scaling of latents) is the family's, unless the file's own metadata overrides it. All
results are parts of a config in diffusers' form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from .header import TensorEntry

HEAD_WIDTH = 64  # channels per head in SD 2.x, SDXL and every CLIP; SD 1.x has 8 heads instead


class Shapes:
    """The tensors of one component: names without their prefix."""

    def __init__(self, file: str, tensors: Mapping[str, TensorEntry], prefix: str) -> None:
        self.file, self._tensors, self.prefix = file, tensors, prefix

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._tensors

    def __getitem__(self, name: str) -> tuple[int, ...]:
        entry = self._tensors.get(self.prefix + name)
        if entry is None or not entry.shape:
            raise CheckpointError(
                f"{self.file} lacks the tensor {self.prefix + name}: it is incomplete or of an "
                "unknown layout; use a complete SD 1.x, SD 2.x or SDXL checkpoint"
            )
        return entry.shape

    def count(self, template: str) -> int:
        """How many of `template` with 0, 1, 2 ... for its `*` there are."""
        found = 0
        while template.replace("*", str(found)) in self:
            found += 1
        return found


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """What UNet2DConditionModel must be told beyond its family's config."""
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
    """Heads per level in SD 2.x and SDXL; diffusers calls this number `attention_head_dim`."""
    return [max(1, width // HEAD_WIDTH) for width in widths]


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """What AutoencoderKL must be told beyond its family's config."""
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


def clip_config(shapes: Shapes, *, drop_last: bool) -> dict[str, Any]:
    """Sizes of a CLIP text encoder in transformers' names; `drop_last` as below."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return _text_config(
        vocabulary=vocabulary,
        width=width,
        positions=shapes["embeddings.position_embedding.weight"][0],
        inner=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        layers=_layers(shapes.count("encoder.layers.*.mlp.fc1.weight"), drop_last),
        projection=width,
    )


def open_clip_config(shapes: Shapes, *, drop_last: bool) -> dict[str, Any]:
    """Sizes of a text encoder in OpenCLIP's names.

    drop_last: SD 2.x reads the last but one layer, so diffusers builds one layer less.
    """
    vocabulary, width = shapes["token_embedding.weight"]
    projection = shapes["text_projection"][1] if "text_projection" in shapes else width
    return _text_config(
        vocabulary=vocabulary,
        width=width,
        positions=shapes["positional_embedding"][0],
        inner=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        layers=_layers(shapes.count("transformer.resblocks.*.mlp.c_fc.weight"), drop_last),
        projection=projection,
    )


def _layers(found: int, drop_last: bool) -> int:
    """Layers to build. Files made from a diffusers folder may lack the unused layer already: 23,
    those of SD 2.x without it, are taken as they are."""
    return found - 1 if drop_last and found != 23 else found


def _text_config(
    *, vocabulary: int, width: int, positions: int, inner: int, layers: int, projection: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": positions,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "projection_dim": projection,
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
        f"{shapes.file}: the U-Net is none that can be mapped (as those of SSD-1B or KOALA): "
        f"{what}; use an SD 1.x, SD 2.x or SDXL base checkpoint, or a fine-tune of one"
    )
