"""Names of the denoiser's tensors in diffusers and in single files (Black Forest Labs' own names).

Nothing is transposed. The queries, keys and values of a double block are rows of one matrix in the
file; those of a single block are fused in diffusers too. The last modulation has its halves (scale
and shift) the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..base.sources import Source

TELLING = "double_stream_modulation_img.lin.weight"  # only FLUX.2 has it
QUERY_NORM = "double_blocks.0.img_attn.norm.query_norm"

_OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
}
_DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_DOUBLE_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
_SINGLE_NORMS = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}


def denoiser_sources(
    config: Mapping[str, Any], prefix: str = "", *, norm: str = "scale"
) -> dict[str, Source]:
    """Diffusers' name to place in a single file, of every tensor of the denoiser.

    norm: what files call the weight of a query's or key's norm; ComfyUI renames it in memory.
    """
    found = dict(_places(config, norm))
    return {
        name: Source(prefix + source.name, source.part, source.rows)
        for name, source in found.items()
    }


def _places(config: Mapping[str, Any], norm: str) -> Iterator[tuple[str, Source]]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    for own, file in _OUTSIDE.items():
        yield f"{own}.weight", Source(f"{file}.weight")
    yield "norm_out.linear.weight", Source("final_layer.adaLN_modulation.1.weight", "swapped")
    for block in range(config["num_layers"]):
        ours, theirs = f"transformer_blocks.{block}", f"double_blocks.{block}"
        for own, file in _DOUBLE.items():
            yield f"{ours}.{own}.weight", Source(f"{theirs}.{file}.weight")
        for own, file in _DOUBLE_NORMS.items():
            yield f"{ours}.{own}.weight", Source(f"{theirs}.{file}.{norm}")
        for file, parts in _FUSED.items():
            for number, own in enumerate(parts):
                rows = number * width, (number + 1) * width
                yield f"{ours}.{own}.weight", Source(f"{theirs}.{file}.weight", "whole", rows)
    for block in range(config["num_single_layers"]):
        ours, theirs = f"single_transformer_blocks.{block}", f"single_blocks.{block}"
        for own, file in _SINGLE.items():
            yield f"{ours}.{own}.weight", Source(f"{theirs}.{file}.weight")
        for own, file in _SINGLE_NORMS.items():
            yield f"{ours}.{own}.weight", Source(f"{theirs}.{file}.{norm}")
