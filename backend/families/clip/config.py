"""Configs of CLIP text encoders, read off the shapes of their tensors; in transformers' names."""

from __future__ import annotations

from typing import Any

from ..base.shapes import Shapes

HEAD_WIDTH = 64  # channels per head in every CLIP
VOCABULARY = 49408  # tokens of its tokenizer
TOKENS = 77  # its context, start and end token included


def clip_config(shapes: Shapes, *, drop_last: bool) -> dict[str, Any]:
    """Read the sizes of a text encoder in transformers' names.

    drop_last: SD 2.x reads the last but one layer, so diffusers builds one layer less.
    """
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
    """Read the sizes of a text encoder in OpenCLIP's names; `drop_last` as in `clip_config`."""
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
    """Count the layers to build. Files made from a diffusers folder may lack the unused layer
    already: 23, those of SD 2.x without it, are taken as they are."""
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
