"""Random files of flow-matching families at the smallest sizes that a real ComfyUI loads: FLUX.2
klein 128 wide and Anima 384 wide (it reads the number of heads off the width, or takes 16), Z-Image
96 wide; VAEs at their only size, or narrow; text encoders as `host_tiny_pack` makes ComfyUI's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes_anima
import fakes_klein
import fakes_z_image
import torch
from safetensors.torch import save_file

KLEIN = {
    "attention_head_dim": 128, "num_attention_heads": 1, "axes_dims_rope": (32,) * 4,
    "timestep_guidance_channels": 256,
}  # fmt: skip
ANIMA = {
    "num_attention_heads": 16, "attention_head_dim": 24, "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
}  # fmt: skip
_VOCABULARY, _T5_VOCABULARY = 151936, 32128  # of ComfyUI's tokenizers
_TOKENIZERS = {"tokenizer": "qwen25_tokenizer", "t5_tokenizer": "t5_tokenizer"}


def write_tiny(family: str, folder: Path, comfyui: Path) -> Path:
    """Write model-base, qwen and vae to the folder, and ComfyUI's own tokenizers beside them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser, vae, width = {
            "flux2_klein": _klein, "anima": _anima, "z_image": _z_image
        }[family]()  # fmt: skip
        text = _qwen(*width)
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in (("model-base", denoiser), ("qwen", text), ("vae", vae)):
        save_file(tensors, folder / f"{name}.safetensors", {"format": "pt"})
    for name, theirs in _TOKENIZERS.items():
        (folder / name).symlink_to(comfyui.resolve() / "comfy/text_encoders" / theirs)
    return folder


def _klein() -> tuple[Any, Any, tuple[int, int]]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    network = Flux2Transformer2DModel(**fakes_klein.denoiser_class_config(**KLEIN))
    vae = AutoencoderKLFlux2()
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 1.5)
    denoiser = fakes_klein.native_denoiser(network.state_dict())
    return denoiser, fakes_klein.native_vae(vae.state_dict()), (32, 48)


def _anima() -> tuple[Any, Any, tuple[int, int]]:
    from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel

    network = CosmosTransformer3DModel(**fakes_anima.denoiser_class_config(**ANIMA))
    conditioner = AnimaTextConditioner(
        source_dim=48, target_dim=1024, model_dim=32, num_layers=1, num_attention_heads=2,
        target_vocab_size=_T5_VOCABULARY,
    )  # fmt: skip
    denoiser = fakes_anima.native_denoiser(network.state_dict()) | {
        f"llm_adapter.{name}": tensor for name, tensor in conditioner.state_dict().items()
    }
    vae = fakes_anima.native_vae(AutoencoderKLQwenImage(base_dim=8).state_dict(), 2)
    return denoiser, vae, (48, 64)


def _z_image() -> tuple[Any, Any, tuple[int, int]]:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=16,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    denoiser = fakes_z_image.denoiser_tensors()
    return denoiser, fakes_klein.native_vae(vae.state_dict()), (32, 48)


def _qwen(width: int, inner: int) -> dict[str, torch.Tensor]:
    from transformers import Qwen3Config, Qwen3Model

    text = Qwen3Model(Qwen3Config(
        vocab_size=_VOCABULARY, hidden_size=width, intermediate_size=inner, num_hidden_layers=4,
        num_attention_heads=1, num_key_value_heads=1, head_dim=128, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ))  # fmt: skip
    for parameter in text.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return {f"model.{name}": tensor for name, tensor in text.state_dict().items()}
