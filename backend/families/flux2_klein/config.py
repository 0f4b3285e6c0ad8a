"""The config of the denoiser, read off the shapes in single files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..base.depth import MOST_LAYERS
from ..base.published import published_in
from ..base.shapes import Shapes
from .names import QUERY_NORM

DENOISER, TEXT, VAE = "transformer", "text_encoder", "vae"
SIDE = 1024  # pixels, of the published models
TOKENS = 512  # of a prompt with its template and padding
STRIDE = 16  # pixels per position: 8 of the VAE, and patches of 2 × 2
TAPS = 3  # layers of the text encoder that are read

published = published_in(Path(__file__).parent)


def denoiser_config(shapes: Shapes, norm: str) -> dict[str, Any]:
    """Return the config of Flux2Transformer2DModel. norm: see `denoiser_sources`."""
    width, channels = shapes["img_in.weight"]
    head = shapes[f"{QUERY_NORM}.{norm}"][0]
    inner = shapes["double_blocks.0.img_mlp.2.weight"][1]
    return published(DENOISER) | {
        "in_channels": channels,
        "num_layers": shapes.count("double_blocks.*.img_attn.qkv.weight"),
        "num_single_layers": shapes.count("single_blocks.*.linear1.weight"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1],
        "mlp_ratio": inner / width,
        "axes_dims_rope": [head // 4] * 4,
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def taps(layers: int) -> tuple[int, ...]:
    """Return the layers of the text encoder that the denoiser reads: 9, 18 and 27 of 36."""
    return tuple(layers * (number + 1) // (TAPS + 1) for number in range(TAPS))


def check_parts(file: str, configs: dict[str, dict[str, Any]]) -> None:
    """Refuse other members of the family tree, and parts that do not belong together."""
    denoiser, text, vae = configs[DENOISER], configs[TEXT], configs[VAE]
    read, given = denoiser["joint_attention_dim"], TAPS * text["hidden_size"]
    if read != given:
        raise CheckpointError(
            f"{file}: its denoiser reads text embeddings of width {read}, but three layers of its "
            f"text encoder give {given}: FLUX.2 klein 4B goes with Qwen3 4B"
        )
    channels = 4 * vae["latent_channels"]
    if denoiser["in_channels"] != channels:
        raise CheckpointError(
            f"{file}: its denoiser takes {denoiser['in_channels']} channels, but its VAE gives "
            f"{channels} (patches of 2 × 2): only the VAE of FLUX.2 fits"
        )
    if text["num_hidden_layers"] <= TAPS or text["num_hidden_layers"] > MOST_LAYERS:
        raise CheckpointError(
            f"{file}: its text encoder has {text['num_hidden_layers']} layers, not the 36 of "
            "Qwen3 4B"
        )
    if max(denoiser["num_layers"], denoiser["num_single_layers"]) > MOST_LAYERS:
        raise CheckpointError(f"{file}: its denoiser has more blocks than any model of its family")
