"""An AutoencoderKL in a file of its own, in any of the spellings that circulate.

There are that of diffusers; that of Latent Diffusion; and the latter with the outer convolutions
inside of encoder and decoder, as Black Forest Labs writes it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from ..base.shapes import Shapes, reads_shapes
from ..base.sources import Source
from .vae_names import vae_sources

OUR_FIRST = "encoder.down_blocks.0.resnets.0.conv1.weight"  # in the names of diffusers
_NESTED_FIRST = "encoder.quant_conv.weight"
_NESTED = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}


@reads_shapes
def vae_config(shapes: Shapes, published: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a VAE; what shapes do not tell is as published."""
    if OUR_FIRST in shapes:
        first, last = "encoder.down_blocks.*.resnets.0.conv1.weight", "encoder.down_blocks.0."
        layers = shapes.count(last + "resnets.*.conv1.weight")
    else:
        first = "encoder.down.*.block.0.conv1.weight"
        layers = shapes.count("encoder.down.0.block.*.conv1.weight")
    levels = shapes.count(first)
    if not levels:
        shapes[first.replace("*", "0")]  # names what is missing
    widths = [shapes[first.replace("*", str(level))][0] for level in range(levels)]
    nested = _NESTED_FIRST in shapes
    return dict(published) | {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": layers,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": nested or "quant_conv.weight" in shapes,
        "use_post_quant_conv": nested or "post_quant_conv.weight" in shapes,
    }


def spelled_sources(
    config: Mapping[str, Any], prefix: str, names: Container[str]
) -> dict[str, Source]:
    """Diffusers' name to place in a file, in the spelling that the file has."""
    known = vae_sources(config, prefix)
    if prefix + OUR_FIRST in names:
        return {name: Source(prefix + name) for name in known}
    if prefix + _NESTED_FIRST in names:
        for own, nested in _NESTED.items():
            for leaf in ("weight", "bias"):
                known[f"{own}.{leaf}"] = Source(f"{prefix}{nested}.{leaf}")
    return known
