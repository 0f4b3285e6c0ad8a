"""Builds Qwen3 without its head: tensors, config, and buffers that no file holds."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ..base.shapes import Shapes, reads_shapes
from ..base.sources import Source
from ..base.stored import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

PREFIX = "model."  # in files of the text encoder alone
UNREAD = "lm_head.weight"  # the text encoder writes no text here
MARK = "layers.0.self_attn.q_norm.weight"  # older Qwen has no such norms
_STORAGE_FIELDS = ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type")
_PARTS = (
    "input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.o_proj", "self_attn.q_norm", "self_attn.k_norm",
)  # fmt: skip


@reads_shapes
def text_config(shapes: Shapes, published: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of Qwen3, in the names of transformers."""
    vocabulary, width = shapes["embed_tokens.weight"]
    head = shapes[MARK][0]
    return dict(published) | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": shapes.count("layers.*.mlp.gate_proj.weight"),
        "num_attention_heads": shapes["layers.0.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes["layers.0.self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
    }


def check_folder(folder: str, config: Mapping[str, Any]) -> None:
    """Refuse the text encoder of a diffusers folder if it is another model."""
    if config.get("model_type") != "qwen3":
        raise CheckpointError(
            f"{folder}: its text encoder is a {config.get('model_type')!r}, not Qwen3"
        )


def prefix_in_folder(names: Container[str]) -> str:
    """Return what the names begin with in a folder, which may hold the model with its head."""
    return PREFIX if PREFIX + "embed_tokens.weight" in names else ""


def tensor_names(config: Mapping[str, Any]) -> list[str]:
    """List the tensors, without prefix."""
    layers = range(config["num_hidden_layers"])
    own = [f"layers.{layer}.{part}.weight" for layer in layers for part in _PARTS]
    return ["embed_tokens.weight", "norm.weight", *own]


def text_sources(checkpoint: Checkpoint, component: str) -> dict[str, Source]:
    """Return the tensors' places in a file or a folder: see `TensorLayout.sources`."""
    prefix = checkpoint.prefixes[component]
    if checkpoint.layout == "diffusers":
        prefix = prefix_in_folder(checkpoint.names(component))
    return {name: Source(prefix + name) for name in tensor_names(checkpoint.configs[component])}


def build_qwen3(config: Mapping[str, Any]) -> nn.Module:
    """Build the network of a config."""
    from transformers import Qwen3Config, Qwen3Model

    known = {key: value for key, value in config.items() if key not in _STORAGE_FIELDS}
    return Qwen3Model(Qwen3Config(**known))


def fill_frequencies(network: Any, device: torch.device) -> None:
    """Compute the frequencies of Qwen3's positions, which follow from its config."""
    import torch

    with torch.device(device):
        network.rotary_emb = type(network.rotary_emb)(network.config)


def bfloat16_or_wider(wanted: torch.dtype, *, small_vae: bool) -> torch.dtype:
    """Return the type that a component works in: see `Networks.dtype`.

    Qwen3 and the denoisers that read it were trained in bfloat16, and exceed the range of float16.
    A small VAE works in float32.
    """
    import torch

    if small_vae:
        return torch.float32
    return torch.bfloat16 if wanted == torch.float16 else wanted


def encoded_by_host(who: str, title: str) -> CheckpointError:
    """Return the refusal to rebuild a text encoder where a host encodes the prompts (`HOST`)."""
    return CheckpointError(
        f"the text encoder of {title} is not rebuilt from {who}: the host's own encodes the "
        "prompts. Load the checkpoint from its files where a text encoder is needed"
    )
