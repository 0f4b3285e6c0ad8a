"""The config of the denoiser, read off the shapes in single files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..base.depth import check_depths
from ..base.published import published_in
from ..base.shapes import Shapes

DENOISER, TEXT, VAE = "transformer", "text_encoder", "vae"
SIDE = 1024  # pixels, of the published models
TOKENS = 512  # of a prompt with its template, at most
PATCH = 2  # elements of a latent, each way, per token
_HEAD, _AXES = 128, (32, 48, 48)  # of the published heads, for text and place

published = published_in(Path(__file__).parent)


def denoiser_config(shapes: Shapes, *, fused: bool) -> dict[str, Any]:
    """Return the config of ZImageTransformer2DModel. fused: see `denoiser_sources`."""
    width, inputs = shapes["x_embedder.weight" if fused else "all_x_embedder.2-1.weight"]
    norm = "attention.k_norm" if fused else "attention.norm_k"
    head = shapes[f"noise_refiner.0.{norm}.weight"][0]
    return published(DENOISER) | {
        "in_channels": inputs // PATCH**2,
        "dim": width,
        "n_layers": shapes.count("layers.*.attention_norm1.weight"),
        "n_refiner_layers": shapes.count("noise_refiner.*.attention_norm1.weight"),
        "n_heads": width // head,
        "n_kv_heads": width // head,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
        "axes_dims": [head * axis // _HEAD for axis in _AXES],
    }


def check_parts(file: str, configs: dict[str, dict[str, Any]]) -> None:
    """Refuse parts that do not belong together."""
    denoiser, text, vae = configs[DENOISER], configs[TEXT], configs[VAE]
    if denoiser["cap_feat_dim"] != text["hidden_size"]:
        raise CheckpointError(
            f"{file}: its denoiser reads text embeddings of width {denoiser['cap_feat_dim']}, but "
            f"its text encoder gives {text['hidden_size']}: Z-Image goes with Qwen3 4B"
        )
    if denoiser["in_channels"] != vae["latent_channels"]:
        raise CheckpointError(
            f"{file}: its denoiser takes {denoiser['in_channels']} channels, but its VAE gives "
            f"{vae['latent_channels']}: only the VAE of FLUX.1 fits"
        )
    check_depths(file, configs, {DENOISER: "n_layers"}, least=1)
    check_depths(file, configs, {DENOISER: "n_refiner_layers"}, least=1)
    check_depths(file, configs, {TEXT: "num_hidden_layers"}, least=2)  # the last but one is read
