"""A tiny random Z-Image in every layout that circulates: a million parameters.

The networks are diffusers' and transformers' own classes. Their tensors are renamed by a table
written here, independent of the package's.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from fakes_klein import byte_tokenizer, native_vae, write_tokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, TEXT_WIDTH, SIDE = 96, 32, 64
CONFIG_KEY = {"resalign.config": json.dumps({"vae": {"norm_num_groups": 4, "sample_size": SIDE}})}
DENOISER_FILE, TEXT_FILE, VAE_FILE = (
    "diffusion_models/tiny_z_image.safetensors",
    "text_encoders/qwen_3_4b.safetensors",
    "vae/ae.safetensors",
)
__all__ = ["byte_tokenizer"]


def denoiser_class_config(**changes: Any) -> dict[str, Any]:
    """Constructor arguments of a tiny ZImageTransformer2DModel."""
    return {
        "dim": WIDTH, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 3, "n_kv_heads": 3,
        "cap_feat_dim": TEXT_WIDTH, "axes_dims": [8, 12, 12], "axes_lens": [1536, 512, 512],
    } | changes  # fmt: skip


@lru_cache(maxsize=2)
def build_networks(seed: int = 0) -> dict[str, nn.Module]:
    """Random networks by component, in float32; no norm is at 1, no bias and no pad token at 0."""
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = Qwen3Config(
            vocab_size=272, hidden_size=TEXT_WIDTH, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-6,
            max_position_embeddings=1024, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )  # fmt: skip
        networks: dict[str, nn.Module] = {
            "transformer": ZImageTransformer2DModel(**denoiser_class_config()),
            "text_encoder": Qwen3Model(text),
            "vae": AutoencoderKL(
                block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=4,
                latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
                shift_factor=0.1159, scaling_factor=0.3611, sample_size=SIDE,
            ),
        }  # fmt: skip
        for network in networks.values():
            for name, tensor in network.named_parameters():
                if tensor.dim() == 1:
                    tensor.data.add_(torch.randn_like(tensor), alpha=0.05)
                elif name.endswith("pad_token"):
                    tensor.data.normal_()
    return {name: network.eval().requires_grad_(False) for name, network in networks.items()}


def native_denoiser(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A denoiser's tensors in the names of ComfyUI: queries, keys and values in one matrix."""
    found: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if part := re.fullmatch(r"(.+\.attention)\.to_([qkv])\.weight", name):
            fused.setdefault(f"{part[1]}.qkv.weight", {})[part[2]] = tensor
            continue
        name = name.replace("all_x_embedder.2-1", "x_embedder")
        name = name.replace("all_final_layer.2-1", "final_layer")
        name = name.replace("attention.to_out.0", "attention.out")
        name = re.sub(r"attention\.norm_([qk])", r"attention.\1_norm", name)
        found[name] = tensor.clone()
    return found | {n: torch.cat([parts[i] for i in "qkv"]) for n, parts in fused.items()}


def denoiser_tensors(*, fused: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """The denoiser's file without prefix; ComfyUI's has a tensor that nothing reads."""
    state = build_networks(seed)["transformer"].state_dict()
    if not fused:
        return {name: tensor.clone() for name, tensor in state.items()}
    return native_denoiser(state) | {"norm_final.weight": torch.ones(WIDTH)}


def write_split(
    models: Path, *, fused: bool = True, prefix: str = "", dtype: torch.dtype = torch.float32
) -> Path:
    """Write denoiser, text encoder and VAE as ComfyUI's users have them; return the denoiser."""
    networks = build_networks()
    tensors = denoiser_tensors(fused=fused)
    parts = {
        DENOISER_FILE: {prefix + name: tensor for name, tensor in tensors.items()},
        TEXT_FILE: {f"model.{n}": t for n, t in networks["text_encoder"].state_dict().items()},
        VAE_FILE: native_vae(networks["vae"].state_dict()),
    }
    for name, own in parts.items():
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cast = {n: t.to(dtype).contiguous() for n, t in own.items()}
        save_file(cast, path, CONFIG_KEY if name == VAE_FILE else {"format": "pt"})
    write_tokenizer(models / "text_encoders" / "tokenizer")
    return models / DENOISER_FILE


def write_whole(path: Path) -> Path:
    """Write everything to one file, as ComfyUI saves checkpoints."""
    networks = build_networks()
    prefixes = {
        "model.diffusion_model.": denoiser_tensors(),
        "text_encoders.qwen3_4b.transformer.model.": networks["text_encoder"].state_dict(),
        "vae.": native_vae(networks["vae"].state_dict()),
    }
    tensors = {p + n: t.clone() for p, state in prefixes.items() for n, t in state.items()}
    save_file(tensors, path, CONFIG_KEY)
    write_tokenizer(path.parent / "tokenizer")
    return path


def write_folder(folder: Path) -> Path:
    """Write a diffusers folder, by the libraries' own save_pretrained."""
    networks: dict[str, Any] = build_networks()
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    write_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "ZImagePipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3Model"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
