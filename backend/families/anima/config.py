"""The configs of the networks, read off the shapes in single files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..base.shapes import Shapes, reads_shapes
from .vae_names import OUR_FIRST

DENOISER, TEXT, CONDITIONER, VAE = "transformer", "text_encoder", "text_conditioner", "vae"
SIDE = 1024  # pixels, of the published models
TOKENS = 512  # of a prompt, in either tokenizer; shorter ones are padded
PATCH = 2  # elements of a latent, each way, per token
_MOST = 128  # layers


def published(name: str) -> dict[str, Any]:
    """Return a published config: of a component, or of `scheduler`."""
    file = Path(__file__).parent / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def denoiser_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of CosmosTransformer3DModel. The depth is that of the file: besides the
    published 28 blocks there are variants of 20, 36 and others."""
    width, inputs = shapes["x_embedder.proj.1.weight"]
    head = shapes["blocks.0.self_attn.q_norm.weight"][0]
    return published(DENOISER) | {
        "in_channels": inputs // PATCH**2 - 1,  # one channel says where the image is padded
        "out_channels": shapes["final_layer.linear.weight"][0] // PATCH**2,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_layers": shapes.count("blocks.*.mlp.layer1.weight"),
        "mlp_ratio": shapes["blocks.0.mlp.layer1.weight"][0] / width,
        "text_embed_dim": shapes["blocks.0.cross_attn.k_proj.weight"][1],
        "adaln_lora_dim": shapes["blocks.0.adaln_modulation_self_attn.1.weight"][0],
    }


def conditioner_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of AnimaTextConditioner."""
    vocabulary, target = shapes["embed.weight"]
    width = shapes["blocks.0.cross_attn.q_proj.weight"][0]
    return published(CONDITIONER) | {
        "source_dim": shapes["blocks.0.cross_attn.k_proj.weight"][1],
        "target_dim": target,
        "model_dim": width,
        "num_layers": shapes.count("blocks.*.mlp.0.weight"),
        "num_attention_heads": width // shapes["blocks.0.cross_attn.q_norm.weight"][0],
        "mlp_ratio": shapes["blocks.0.mlp.0.weight"][0] / width,
        "target_vocab_size": vocabulary,
        "use_self_attention": "blocks.0.self_attn.q_proj.weight" in shapes,
        "use_layer_norm": "blocks.0.norm_mlp.bias" in shapes,
    }


@reads_shapes
def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of AutoencoderKLQwenImage, from a file in Wan's names or in diffusers'."""
    ours = OUR_FIRST in shapes
    row = "encoder.down_blocks.{}." if ours else "encoder.downsamples.{}."
    residual = "conv1.weight" if ours else "residual.2.weight"
    base = shapes["encoder.conv_in.weight" if ours else "encoder.conv1.weight"]
    levels: list[list[int]] = [[]]  # width of each residual layer by level
    in_time: list[bool] = []
    for number in range(_MOST):
        layer = row.format(number)
        if layer + residual in shapes:
            levels[-1].append(shapes[layer + residual][0])
        elif layer + "resample.1.weight" in shapes:
            in_time.append(layer + "time_conv.weight" in shapes)
            levels.append([])
        else:
            break
    if not all(levels):
        shapes[row.format(0) + residual]  # names what is missing
    return published(VAE) | {
        "base_dim": base[0],
        "input_channels": base[1],
        "z_dim": shapes["post_quant_conv.weight" if ours else "conv2.weight"][0],
        "dim_mult": [level[-1] // base[0] for level in levels],
        "num_res_blocks": len(levels[0]),
        "temperal_downsample": in_time,
    }


def check_parts(file: str, configs: dict[str, dict[str, Any]]) -> None:
    """Refuse parts that do not belong together."""
    denoiser, text, vae = configs[DENOISER], configs[TEXT], configs[VAE]
    conditioner = configs[CONDITIONER]
    if conditioner["source_dim"] != text["hidden_size"]:
        raise CheckpointError(
            f"{file}: its text conditioner reads states of width {conditioner['source_dim']}, but "
            f"the text encoder gives {text['hidden_size']}: Anima goes with Qwen3 0.6B"
        )
    if conditioner["target_dim"] != denoiser["text_embed_dim"]:
        raise CheckpointError(
            f"{file}: its denoiser reads text embeddings of width {denoiser['text_embed_dim']}, "
            f"but its text conditioner gives {conditioner['target_dim']}: the file is of two models"
        )
    if vae["z_dim"] != denoiser["in_channels"] or vae["input_channels"] != 3:
        raise CheckpointError(
            f"{file}: its denoiser takes {denoiser['in_channels']} channels of an image in 3 "
            f"colours, but its VAE gives {vae['z_dim']} of {vae['input_channels']}: only the VAE "
            "of Qwen-Image fits"
        )
    for component, most in ((DENOISER, "num_layers"), (TEXT, "num_hidden_layers")):
        if not 0 < configs[component][most] <= _MOST:
            raise CheckpointError(
                f"{file}: its {component} has {configs[component][most]} layers, more or fewer "
                "than any model of its family"
            )
