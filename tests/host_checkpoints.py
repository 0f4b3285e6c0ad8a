"""A reduced checkpoint that ComfyUI takes for SD 1.5: random weights of the true names.

Its detection asks for a U-Net 320 wide that reads 768 numbers per token; there may be one level.
CLIP must be whole (missing layers stay uninitialised memory there), so it is stored in fp8, and
0.3.64 builds the decoder of the VAE 128 wide whatever the file says. About 340 MB.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, CONTEXT, TIME = 320, 768, 1280


class _Weights:
    """Tensors by name, drawn from one seed, small enough for activations to stay finite."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, torch.Tensor] = {}
        self.dtype = torch.float16

    def table(self, name: str, *shape: int, scale: float = 0.02) -> None:
        drawn = torch.randn(*shape, generator=self.random) * scale
        self.tensors[name] = drawn.to(self.dtype)

    def layer(self, name: str, *shape: int, bias: bool = True, gain: float = 1.0) -> None:
        fan_in = math.prod(shape[1:])
        self.table(name + ".weight", *shape, scale=gain / math.sqrt(fan_in))
        if bias:
            self.table(name + ".bias", shape[0], scale=0.01)

    def norm(self, name: str, width: int) -> None:
        self.tensors[name + ".weight"] = torch.ones(width, dtype=self.dtype)
        self.tensors[name + ".bias"] = torch.zeros(width, dtype=self.dtype)


def write_reduced_checkpoint(
    path: Path, *, seed: int = 0, unet: torch.dtype = torch.float16
) -> Path:
    """Write the checkpoint; the same seed gives the same weights. unet: how its U-Net is stored."""
    weights = _Weights(seed)
    weights.dtype = unet
    _unet(weights, "model.diffusion_model.")
    weights.dtype = torch.float16
    _vae(weights, "first_stage_model.")
    weights.dtype = torch.float8_e4m3fn
    _clip(weights, "cond_stage_model.transformer.text_model.")
    save_file(weights.tensors, path, metadata={"format": "pt"})
    return path


def _unet(w: _Weights, prefix: str) -> None:
    w.layer(prefix + "time_embed.0", TIME, WIDTH)
    w.layer(prefix + "time_embed.2", TIME, TIME)
    w.layer(prefix + "input_blocks.0.0", WIDTH, 4, 3, 3)
    _residual(w, prefix + "input_blocks.1.0", WIDTH)
    _transformer(w, prefix + "input_blocks.1.1")
    _residual(w, prefix + "middle_block.0", WIDTH)
    _transformer(w, prefix + "middle_block.1")
    _residual(w, prefix + "middle_block.2", WIDTH)
    for block in (0, 1):
        _residual(w, f"{prefix}output_blocks.{block}.0", 2 * WIDTH)
        _transformer(w, f"{prefix}output_blocks.{block}.1")
    w.norm(prefix + "out.0", WIDTH)
    w.layer(prefix + "out.2", 4, WIDTH, 3, 3)


def _residual(w: _Weights, name: str, width: int) -> None:
    w.norm(name + ".in_layers.0", width)
    w.layer(name + ".in_layers.2", WIDTH, width, 3, 3)
    w.layer(name + ".emb_layers.1", WIDTH, TIME)
    w.norm(name + ".out_layers.0", WIDTH)
    w.layer(name + ".out_layers.3", WIDTH, WIDTH, 3, 3, gain=0.5)
    if width != WIDTH:
        w.layer(name + ".skip_connection", WIDTH, width, 1, 1)


def _transformer(w: _Weights, name: str) -> None:
    w.norm(name + ".norm", WIDTH)
    w.layer(name + ".proj_in", WIDTH, WIDTH, 1, 1)
    w.layer(name + ".proj_out", WIDTH, WIDTH, 1, 1, gain=0.5)
    inner = name + ".transformer_blocks.0"
    for attention, read in (("attn1", WIDTH), ("attn2", CONTEXT)):
        w.layer(f"{inner}.{attention}.to_q", WIDTH, WIDTH, bias=False)
        w.layer(f"{inner}.{attention}.to_k", WIDTH, read, bias=False)
        w.layer(f"{inner}.{attention}.to_v", WIDTH, read, bias=False)
        w.layer(f"{inner}.{attention}.to_out.0", WIDTH, WIDTH, gain=0.5)
    w.layer(inner + ".ff.net.0.proj", 8 * WIDTH, WIDTH)
    w.layer(inner + ".ff.net.2", WIDTH, 4 * WIDTH, gain=0.5)
    for norm in ("norm1", "norm2", "norm3"):
        w.norm(f"{inner}.{norm}", WIDTH)


def _clip(w: _Weights, prefix: str) -> None:
    w.table(prefix + "embeddings.token_embedding.weight", 49408, CONTEXT)
    w.table(prefix + "embeddings.position_embedding.weight", 77, CONTEXT)
    for layer in range(12):
        name = f"{prefix}encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            w.layer(f"{name}self_attn.{part}", CONTEXT, CONTEXT, gain=0.5)
        w.layer(name + "mlp.fc1", 4 * CONTEXT, CONTEXT, gain=0.5)
        w.layer(name + "mlp.fc2", CONTEXT, 4 * CONTEXT, gain=0.5)
        w.norm(name + "layer_norm1", CONTEXT)
        w.norm(name + "layer_norm2", CONTEXT)
    w.norm(prefix + "final_layer_norm", CONTEXT)


def _vae(w: _Weights, prefix: str) -> None:
    widths = (128, 256, 512, 512)
    encoder, decoder = prefix + "encoder.", prefix + "decoder."
    w.layer(encoder + "conv_in", 128, 3, 3, 3)
    width = 128
    for level, out in enumerate(widths):
        for block in range(2):
            _vae_residual(w, f"{encoder}down.{level}.block.{block}", width, out)
            width = out
        if level < 3:
            w.layer(f"{encoder}down.{level}.downsample.conv", out, out, 3, 3)
    _vae_middle(w, encoder)
    w.norm(encoder + "norm_out", 512)
    w.layer(encoder + "conv_out", 8, 512, 3, 3)
    w.layer(prefix + "quant_conv", 8, 8, 1, 1)
    w.layer(prefix + "post_quant_conv", 4, 4, 1, 1)
    w.layer(decoder + "conv_in", 512, 4, 3, 3)
    _vae_middle(w, decoder)
    for level in (3, 2, 1, 0):
        for block in range(3):
            _vae_residual(w, f"{decoder}up.{level}.block.{block}", width, widths[level])
            width = widths[level]
        if level:
            w.layer(f"{decoder}up.{level}.upsample.conv", width, width, 3, 3)
    w.norm(decoder + "norm_out", 128)
    w.layer(decoder + "conv_out", 3, 128, 3, 3)


def _vae_middle(w: _Weights, prefix: str) -> None:
    _vae_residual(w, prefix + "mid.block_1", 512, 512)
    w.norm(prefix + "mid.attn_1.norm", 512)
    for part in ("q", "k", "v", "proj_out"):
        w.layer(f"{prefix}mid.attn_1.{part}", 512, 512, 1, 1)
    _vae_residual(w, prefix + "mid.block_2", 512, 512)


def _vae_residual(w: _Weights, name: str, width: int, out: int) -> None:
    w.norm(name + ".norm1", width)
    w.layer(name + ".conv1", out, width, 3, 3)
    w.norm(name + ".norm2", out)
    w.layer(name + ".conv2", out, out, 3, 3, gain=0.5)
    if width != out:
        w.layer(name + ".nin_shortcut", out, width, 1, 1)


def write_full_checkpoint(path: Path) -> Path:
    """A whole SD 1.5 of random weights in fp16, for hosts that take no reduced one: 2.1 GB.

    A1111 and Forge divide by the mean of the text encoder's output, which a last norm without a
    bias makes 0: the picture would be empty.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from fakes_checkpoint import ldm_tensors
    from transformers import CLIPTextConfig, CLIPTextModel

    from resalign.backend.families import find_family

    torch.manual_seed(0)
    published = find_family("sd1").config
    networks = {
        "unet": UNet2DConditionModel.from_config(published("unet")),
        "vae": AutoencoderKL.from_config(published("vae")),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**published("text_encoder"))),
    }
    tensors = ldm_tensors({name: network.half() for name, network in networks.items()})
    tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"].fill_(0.1)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    return path


def write_reduced_sdxl(path: Path) -> Path:
    """An SDXL of random weights whose U-Net is as deep as SDXL's and 320 wide everywhere: 1.3 GB.

    ComfyUI compares the depths of its transformers, not the widths. The text encoders are whole, in
    fp8, as a layer that is missing would stay uninitialised there.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from fakes_checkpoint import ldm_tensors
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from resalign.backend.families import find_family

    published = find_family("sdxl").config
    unet = published("unet") | {
        "block_out_channels": (WIDTH,) * 3, "attention_head_dim": (WIDTH // 64,) * 3,
    }  # fmt: skip
    networks = {
        "unet": UNet2DConditionModel.from_config(unet),
        "vae": AutoencoderKL.from_config(published("vae")),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**published("text_encoder"))),
        "text_encoder_2": CLIPTextModelWithProjection(
            CLIPTextConfig(**published("text_encoder_2"))
        ),
    }
    for network in networks.values():
        network.half()
    stored = {}
    for name, tensor in ldm_tensors(networks, "sdxl").items():
        whole = name.startswith("first_stage_model.")
        stored[name] = tensor.to(torch.float16 if whole else torch.float8_e4m3fn).contiguous()
    save_file(stored, path, metadata={"format": "pt"})
    return path


def place_reduced_sdxl(folder: Path) -> str:
    """Put the reduced SDXL into a folder and return its name; REDUCED_SDXL may name a ready one."""
    file = folder / "reduced_sdxl.safetensors"
    given = os.environ.get("REDUCED_SDXL")
    if given and not file.exists():
        file.symlink_to(given)
    elif not file.exists():
        write_reduced_sdxl(file)
    return file.name
