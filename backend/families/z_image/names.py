"""Names of the denoiser's tensors in diffusers and in single files.

Single files come in two spellings: that of ComfyUI, which keeps queries, keys and values as rows of
one matrix, and that of diffusers, in which the official weights were published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..base.sources import Source

FUSED = ("noise_refiner.0.attention.qkv.weight", "cap_pad_token")  # ComfyUI's spelling
SPLIT = ("noise_refiner.0.attention.to_q.weight", "cap_pad_token")  # that of diffusers
UNREAD = "norm_final.weight"  # is in some files, and nothing reads it

_OUTSIDE = {
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    "t_embedder.mlp.0": "t_embedder.mlp.0",
    "t_embedder.mlp.2": "t_embedder.mlp.2",
    "cap_embedder.1": "cap_embedder.1",
}
_ALONE = ("cap_embedder.0.weight", "x_pad_token", "cap_pad_token")
_RENAMED = {
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
}
_SAME = (
    "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "attention_norm1", "attention_norm2",
    "ffn_norm1", "ffn_norm2",
)  # fmt: skip
_PARTS = ("attention.to_q", "attention.to_k", "attention.to_v")
_MODULATION = "adaLN_modulation.0"


def denoiser_sources(
    config: Mapping[str, Any], prefix: str = "", *, fused: bool = True
) -> dict[str, Source]:
    """Diffusers' name to place in a single file, of every tensor of the denoiser. fused: in the
    spelling of ComfyUI."""
    found = dict(_places(config))
    if not fused:
        return {name: Source(prefix + name) for name in found}
    return {
        name: Source(prefix + source.name, source.part, source.rows)
        for name, source in found.items()
    }


def _places(config: Mapping[str, Any]) -> Iterator[tuple[str, Source]]:
    width = config["dim"]
    for own, file in _OUTSIDE.items():
        for leaf in ("weight", "bias"):
            yield f"{own}.{leaf}", Source(f"{file}.{leaf}")
    for name in _ALONE:
        yield name, Source(name)
    for block in _blocks(config):
        for own, file in (*_RENAMED.items(), *((name, name) for name in _SAME)):
            yield f"{block}.{own}.weight", Source(f"{block}.{file}.weight")
        for number, own in enumerate(_PARTS):
            rows = number * width, (number + 1) * width
            place = Source(f"{block}.attention.qkv.weight", "whole", rows)
            yield f"{block}.{own}.weight", place
        if not block.startswith("context_refiner"):  # the text is the same at all times
            for leaf in ("weight", "bias"):
                yield f"{block}.{_MODULATION}.{leaf}", Source(f"{block}.{_MODULATION}.{leaf}")


def _blocks(config: Mapping[str, Any]) -> Iterator[str]:
    for number in range(config["n_layers"]):
        yield f"layers.{number}"
    for kind in ("noise_refiner", "context_refiner"):
        for number in range(config["n_refiner_layers"]):
            yield f"{kind}.{number}"
