"""A tiny random FLUX.2 klein in every layout that circulates: less than a million parameters.

The networks are diffusers' and transformers' own classes. Their tensors are renamed by a table
written here, independent of the package's. The tokenizer is a byte-level BPE built in code.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, TEXT_WIDTH, SIDE = 64, 32, 64
CONFIG_KEY = {"resalign.config": json.dumps({"vae": {"norm_num_groups": 4, "sample_size": SIDE}})}
DENOISER_FILE, TEXT_FILE, VAE_FILE = (
    "diffusion_models/tiny-klein-base.safetensors",
    "text_encoders/qwen_3_4b.safetensors",
    "vae/flux2-vae.safetensors",
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not "
    "enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
_FUSED = {
    "attn.to_q": ("img_attn.qkv", 0), "attn.to_k": ("img_attn.qkv", 1),
    "attn.to_v": ("img_attn.qkv", 2), "attn.add_q_proj": ("txt_attn.qkv", 0),
    "attn.add_k_proj": ("txt_attn.qkv", 1), "attn.add_v_proj": ("txt_attn.qkv", 2),
}  # fmt: skip
_RENAMES = (
    (r"^x_embedder", "img_in"),
    (r"^context_embedder", "txt_in"),
    (r"^proj_out", "final_layer.linear"),
    (r"^norm_out.linear", "final_layer.adaLN_modulation.1"),
    (r"^time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    (r"^time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    (r"_modulation(_img|_txt|)\.linear", r"_modulation\1.lin"),
    (r"^transformer_blocks", "double_blocks"),
    (r"^single_transformer_blocks", "single_blocks"),
    (r"attn.to_qkv_mlp_proj", "linear1"),
    (r"attn.to_out.weight", "linear2.weight"),
    (r"attn.to_out.0", "img_attn.proj"),
    (r"attn.to_add_out", "txt_attn.proj"),
    (r"ff.linear_in", "img_mlp.0"),
    (r"ff.linear_out", "img_mlp.2"),
    (r"ff_context.linear_in", "txt_mlp.0"),
    (r"ff_context.linear_out", "txt_mlp.2"),
    (r"attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    (r"attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
    (r"^(double.*)attn.norm_q.weight", r"\1img_attn.norm.query_norm.scale"),
    (r"^(double.*)attn.norm_k.weight", r"\1img_attn.norm.key_norm.scale"),
    (r"^(single.*)attn.norm_q.weight", r"\1norm.query_norm.scale"),
    (r"^(single.*)attn.norm_k.weight", r"\1norm.key_norm.scale"),
)


def denoiser_class_config(**changes: Any) -> dict[str, Any]:
    """Constructor arguments of a tiny Flux2Transformer2DModel."""
    return {
        "in_channels": 128, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 4, "joint_attention_dim": 3 * TEXT_WIDTH,
        "timestep_guidance_channels": 32, "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": False,
    } | changes  # fmt: skip


@lru_cache(maxsize=2)
def build_networks(seed: int = 0) -> dict[str, nn.Module]:
    """Random networks by component, in float32; no norm is at 1, no bias at 0."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = Qwen3Config(
            vocab_size=272, hidden_size=TEXT_WIDTH, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-6,
            max_position_embeddings=1024, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )  # fmt: skip
        networks: dict[str, nn.Module] = {
            "transformer": Flux2Transformer2DModel(**denoiser_class_config()),
            "text_encoder": Qwen3Model(text),
            "vae": AutoencoderKLFlux2(
                block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4,
                latent_channels=32, sample_size=SIDE,
            ),
        }  # fmt: skip
        for network in networks.values():
            for tensor in network.parameters():
                if tensor.dim() == 1:
                    tensor.data.add_(torch.randn_like(tensor), alpha=0.05)
        norm: Any = networks["vae"].bn
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 1.5)
    return {name: network.eval().requires_grad_(False) for name, network in networks.items()}


def native_denoiser(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A denoiser's tensors in the names of Black Forest Labs, as files keep them."""
    found: dict[str, Tensor] = {}
    fused: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        block = re.match(r"transformer_blocks\.(\d+)\.(.+)\.weight", name)
        if block and block[2] in _FUSED:
            target, part = _FUSED[block[2]]
            fused.setdefault(f"double_blocks.{block[1]}.{target}.weight", {})[part] = tensor
            continue
        if name == "norm_out.linear.weight":
            scale, shift = tensor.chunk(2)
            tensor = torch.cat([shift, scale])
        for pattern, new in _RENAMES:
            name = re.sub(pattern, new, name)
        found[name] = tensor
    found |= {n: torch.cat([parts[i] for i in range(3)]) for n, parts in fused.items()}
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def native_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The VAE's tensors as Black Forest Labs names them: 1 x 1 convolutions inside its halves."""
    found = {}
    for name, tensor in state.items():
        if "attentions.0.to_" in name and name.endswith("weight"):
            tensor = tensor[..., None, None]
        name = re.sub(r"^quant_conv", "encoder.quant_conv", name)
        name = re.sub(r"^post_quant_conv", "decoder.post_quant_conv", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        up = re.search(r"up_blocks\.(\d)\.", name)
        if up:
            name = name.replace(f"up_blocks.{up[1]}", f"up.{3 - int(up[1])}")
            name = re.sub(r"resnets\.(\d)", r"block.\1", name).replace("upsamplers.0", "upsample")
        name = name.replace("mid_block.resnets.0", "mid.block_1")
        name = name.replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
        name = name.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
        name = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", name)
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        found[name] = tensor.clone().contiguous()
    return found


def write_split(models: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write denoiser, text encoder and VAE as ComfyUI's users have them; return the denoiser."""
    networks = build_networks(seed)
    text = {"model." + n: t.clone() for n, t in networks["text_encoder"].state_dict().items()}
    parts = {
        DENOISER_FILE: native_denoiser(networks["transformer"].state_dict()),
        TEXT_FILE: text,
        VAE_FILE: native_vae(networks["vae"].state_dict()),
    }
    for name, tensors in parts.items():
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
        save_file(cast, path, CONFIG_KEY if name == VAE_FILE else {"format": "pt"})
    write_tokenizer(models / "text_encoders" / "tokenizer")
    return models / DENOISER_FILE


def write_whole(path: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write everything to one file, as ComfyUI saves checkpoints."""
    networks = build_networks()
    prefixes = {
        "model.diffusion_model.": native_denoiser(networks["transformer"].state_dict()),
        "text_encoders.qwen3_4b.transformer.model.": networks["text_encoder"].state_dict(),
        "vae.": native_vae(networks["vae"].state_dict()),
    }
    tensors = {
        prefix + name: tensor.clone().to(dtype) if tensor.is_floating_point() else tensor.clone()
        for prefix, state in prefixes.items()
        for name, tensor in state.items()
    }
    save_file(tensors, path, CONFIG_KEY)
    write_tokenizer(path.parent / "tokenizer")
    return path


def write_folder(folder: Path, *, is_distilled: bool = False) -> Path:
    """Write a diffusers folder, by the libraries' own save_pretrained."""
    from transformers import Qwen3ForCausalLM

    networks: dict[str, Any] = build_networks()
    networks["transformer"].save_pretrained(folder / "transformer")
    networks["vae"].save_pretrained(folder / "vae")
    text = Qwen3ForCausalLM(networks["text_encoder"].config)
    text.model.load_state_dict(networks["text_encoder"].state_dict())
    text.save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "Flux2KleinPipeline", "is_distilled": is_distilled,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }  # fmt: skip
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@lru_cache(maxsize=1)
def byte_tokenizer() -> Any:
    """A byte-level BPE without merges, with Qwen3's special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*_SPECIAL, *characters))}
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token=_SPECIAL[0], eos_token=_SPECIAL[2],
        additional_special_tokens=[*_SPECIAL[1:2], *_SPECIAL[3:]], chat_template=CHAT,
        model_max_length=512,
    )  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    byte_tokenizer().save_pretrained(str(folder))
