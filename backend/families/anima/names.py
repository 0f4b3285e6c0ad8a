"""Names of the denoiser's tensors in diffusers and in single files (NVIDIA's Cosmos names).

Nothing is fused, transposed or exchanged: each tensor has a place of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..base.sources import Source

TELLING = ("blocks.0.mlp.layer1.weight", "x_embedder.proj.1.weight")  # Cosmos Predict2 and Anima
CONDITIONER = "llm_adapter."  # what the text conditioner's names begin with, after the prefix
OUR_TELLING = "transformer_blocks.0.norm1.linear_1.weight"  # the same in diffusers

_OUTSIDE = {
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "time_embed.norm": "t_embedding_norm",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}
_ATTENTION = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "output_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
_IN_BLOCK = {
    **{f"attn1.{own}": f"self_attn.{file}" for own, file in _ATTENTION.items()},
    **{f"attn2.{own}": f"cross_attn.{file}" for own, file in _ATTENTION.items()},
    "norm1.linear_1": "adaln_modulation_self_attn.1",
    "norm1.linear_2": "adaln_modulation_self_attn.2",
    "norm2.linear_1": "adaln_modulation_cross_attn.1",
    "norm2.linear_2": "adaln_modulation_cross_attn.2",
    "norm3.linear_1": "adaln_modulation_mlp.1",
    "norm3.linear_2": "adaln_modulation_mlp.2",
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
}
_OUTSIDE_BACK = {file: own for own, file in _OUTSIDE.items()}
_IN_BLOCK_BACK = {file: own for own, file in _IN_BLOCK.items()}


def denoiser_sources(config: Mapping[str, Any], prefix: str = "") -> dict[str, Source]:
    """Diffusers' name to place in a single file, of every tensor of the denoiser."""
    return {
        f"{module}.weight": Source(f"{prefix}{native(module)}.weight")
        for module in _modules(config["num_layers"])
    }


def native(module: str) -> str:
    """Return the name in single files of a module of the denoiser."""
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    _, number, rest = module.split(".", 2)
    return f"blocks.{number}.{_IN_BLOCK[rest]}"


def module_of(name: str) -> str | None:
    """Return the module of a name in single files; None where there is none of that name."""
    if name in _OUTSIDE_BACK:
        return _OUTSIDE_BACK[name]
    parts = name.split(".", 2)
    if len(parts) < 3 or parts[0] != "blocks" or not parts[1].isdecimal():
        return None
    own = _IN_BLOCK_BACK.get(parts[2])
    return f"transformer_blocks.{parts[1]}.{own}" if own else None


def _modules(layers: int) -> Iterator[str]:
    yield from _OUTSIDE
    for block in range(layers):
        for own in _IN_BLOCK:
            yield f"transformer_blocks.{block}.{own}"
