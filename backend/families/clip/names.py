"""Names of CLIP's tensors in single files and in transformers, for every width and depth.

Single files keep CLIP-L in the names of transformers, and the larger encoders in OpenCLIP's own,
where q, k and v are rows of one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..base.sources import Part, Rows, Source


def clip_sources(text_config: Mapping[str, Any], prefix: str) -> dict[str, Source]:
    """Name in transformers to place in a file that keeps these names.

    prefix: up to `embeddings.`, e.g. `cond_stage_model.transformer.text_model.`.
    """
    return {"text_model." + name: Source(prefix + name) for name in clip_names(text_config)}


def open_clip_sources(
    text_config: Mapping[str, Any], prefix: str, *, projection: bool
) -> dict[str, Source]:
    """Name in transformers to place in a file with OpenCLIP's names.

    prefix: e.g. `cond_stage_model.model.`. projection: with `text_projection` (SDXL).
    """
    found = {
        "text_model." + clip: Source(prefix + name, "whole", rows)
        for name, clip, rows in open_clip_names(text_config)
    }
    if projection:
        transposed: Part = "transposed"
        found["text_projection.weight"] = Source(prefix + "text_projection", transposed)
    return found


def canonical(name: str) -> str:
    """Return the name of a tensor in transformers before 5.6, whose later versions drop
    `text_model.` from some classes."""
    return name if name.startswith(("text_model.", "text_projection.")) else "text_model." + name


def clip_names(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield every tensor of CLIPTextModel, from its config, without `text_model.`."""
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


def open_clip_names(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Rows | None]]:
    """Yield (OpenCLIP name, transformers name, rows), without prefixes."""
    yield "token_embedding.weight", "embeddings.token_embedding.weight", None
    yield "positional_embedding", "embeddings.position_embedding.weight", None
    same = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    width = config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        ldm, clip = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for leaf in ("weight", "bias"):
            for old, new in same.items():
                yield f"{ldm}.{old}.{leaf}", f"{clip}.{new}.{leaf}", None
            for number, part in enumerate("qkv"):
                rows = number * width, (number + 1) * width
                yield f"{ldm}.attn.in_proj_{leaf}", f"{clip}.self_attn.{part}_proj.{leaf}", rows
    yield "ln_final.weight", "final_layer_norm.weight", None
    yield "ln_final.bias", "final_layer_norm.bias", None
