"""Random files of FLUX.2 klein at the smallest sizes that a real ComfyUI loads: the denoiser 128
wide (it reads the number of heads off the width), the VAE at its only size, and a text encoder as
`host_tiny_qwen` makes ComfyUI's."""

from __future__ import annotations

from pathlib import Path

import fakes_klein as fakes
import torch
from safetensors.torch import save_file

SIZES = {
    "attention_head_dim": 128, "num_attention_heads": 1, "axes_dims_rope": (32,) * 4,
    "timestep_guidance_channels": 256,
}  # fmt: skip
_VOCABULARY = 151936  # of ComfyUI's tokenizer


def write_tiny_klein(folder: Path, comfyui: Path) -> Path:
    """Write klein-base, qwen and vae to the folder, and ComfyUI's own tokenizer beside them."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Flux2Transformer2DModel(**fakes.denoiser_class_config(**SIZES))
        vae = AutoencoderKLFlux2()
        vae.bn.running_mean.normal_(std=0.3)
        vae.bn.running_var.uniform_(0.5, 1.5)
        text = Qwen3Model(Qwen3Config(
            vocab_size=_VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=1, num_key_value_heads=1, head_dim=128, rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        ))  # fmt: skip
        for parameter in text.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(fakes.native_denoiser(network.state_dict()), folder / "klein-base.safetensors")
    states = {f"model.{name}": tensor for name, tensor in text.state_dict().items()}
    save_file(states, folder / "qwen.safetensors")
    save_file(fakes.native_vae(vae.state_dict()), folder / "vae.safetensors")
    (folder / "tokenizer").symlink_to(comfyui.resolve() / "comfy/text_encoders/qwen25_tokenizer")
    return folder
