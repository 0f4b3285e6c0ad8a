"""A tiny random Anima in every layout that circulates: a third of a million parameters.

The networks are diffusers' and transformers' own classes. Their tensors are renamed by a table
written here, independent of the package's. Both tokenizers are byte-level BPEs built in code.
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

WIDTH, TEXT_WIDTH, SIDE, VOCABULARY = 64, 32, 64, 272
CONFIG_KEY = {"resalign.config": json.dumps({"vae": {"sample_size": SIDE}})}
DENOISER_FILE, TEXT_FILE, VAE_FILE = (
    "diffusion_models/tiny-anima.safetensors",
    "text_encoders/qwen_3_06b_base.safetensors",
    "vae/qwen_image_vae.safetensors",
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
T5_TOKENS = ("<pad>", "</s>", "<unk>", "<extra_id_0>")
_RENAMES = (
    (r"^transformer_blocks", "blocks"),
    (r"^patch_embed.proj", "x_embedder.proj.1"),
    (r"^time_embed.t_embedder", "t_embedder.1"),
    (r"^time_embed.norm", "t_embedding_norm"),
    (r"^norm_out.linear_(\d)", r"final_layer.adaln_modulation.\1"),
    (r"^proj_out", "final_layer.linear"),
    (r"norm1.linear_(\d)", r"adaln_modulation_self_attn.\1"),
    (r"norm2.linear_(\d)", r"adaln_modulation_cross_attn.\1"),
    (r"norm3.linear_(\d)", r"adaln_modulation_mlp.\1"),
    (r"attn1", "self_attn"),
    (r"attn2", "cross_attn"),
    (r"to_out.0", "output_proj"),
    (r"to_([qkv])\.", r"\1_proj."),
    (r"norm_([qk])\.", r"\1_norm."),
    (r"ff.net.0.proj", "mlp.layer1"),
    (r"ff.net.2", "mlp.layer2"),
)


def denoiser_class_config(**changes: Any) -> dict[str, Any]:
    """Constructor arguments of a tiny CosmosTransformer3DModel."""
    return {
        "in_channels": 16, "out_channels": 16, "num_attention_heads": 2, "attention_head_dim": 32,
        "num_layers": 2, "text_embed_dim": TEXT_WIDTH, "adaln_lora_dim": 16,
        "max_size": (128, 240, 240), "rope_scale": (1.0, 4.0, 4.0), "concat_padding_mask": True,
        "extra_pos_embed_type": None,
    } | changes  # fmt: skip


@lru_cache(maxsize=2)
def build_networks(seed: int = 0) -> dict[str, nn.Module]:
    """Random networks by component, in float32; no norm is at 1, no bias at 0."""
    from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel
    from transformers import Qwen3Config, Qwen3Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=TEXT_WIDTH, intermediate_size=48,
            num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            rms_norm_eps=1e-6, max_position_embeddings=1024, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )  # fmt: skip
        networks: dict[str, nn.Module] = {
            "transformer": CosmosTransformer3DModel(**denoiser_class_config()),
            "text_encoder": Qwen3Model(text),
            "text_conditioner": AnimaTextConditioner(
                source_dim=TEXT_WIDTH, target_dim=TEXT_WIDTH, model_dim=TEXT_WIDTH, num_layers=1,
                num_attention_heads=2, target_vocab_size=VOCABULARY,
            ),
            "vae": AutoencoderKLQwenImage(
                base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1
            ),
        }  # fmt: skip
        for network in networks.values():
            for tensor in network.parameters():
                if tensor.dim() != 2:
                    tensor.data.add_(torch.randn_like(tensor), alpha=0.05)
    return {name: network.eval().requires_grad_(False) for name, network in networks.items()}


def native_denoiser(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A denoiser's tensors in the names of Cosmos."""
    found = {}
    for name, tensor in state.items():
        for pattern, new in _RENAMES:
            name = re.sub(pattern, new, name)
        found[name] = tensor.clone()
    return found


def native_vae(state: dict[str, Tensor], residuals: int = 1) -> dict[str, Tensor]:
    """The VAE's tensors in the names of Wan, which numbers all layers of a side in one row."""
    found = {}
    for name, tensor in state.items():
        name = re.sub(r"^post_quant_conv", "conv2", re.sub(r"^quant_conv", "conv1", name))
        name = name.replace("encoder.down_blocks", "encoder.downsamples")
        if up := re.match(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.(.+)", name):
            layer = residuals + 1 if up[2] == "upsamplers" else int(up[3])
            name = f"decoder.upsamples.{int(up[1]) * (residuals + 2) + layer}.{up[4]}"
        name = name.replace("mid_block.attentions.0", "middle.1")
        name = name.replace("mid_block.resnets.0", "middle.0")
        name = name.replace("mid_block.resnets.1", "middle.2")
        name = name.replace("conv_shortcut", "shortcut").replace("conv_in", "conv1")
        name = name.replace("norm_out", "head.0").replace("conv_out", "head.2")
        name = re.sub(r"\.norm1\.", ".residual.0.", re.sub(r"\.norm2\.", ".residual.3.", name))
        if re.search(r"(samples\.\d+|middle\.[02])\.conv", name):
            name = name.replace("conv1", "residual.2").replace("conv2", "residual.6")
            name = name.replace("encoder.residual.2", "encoder.conv1")
        found[name] = tensor.clone()
    return found


def counters() -> dict[str, Tensor]:
    """The counters that Cosmos' trainer leaves in a file, of several types and shapes."""
    return {
        "pos_embedder.seq": torch.arange(240.0),
        "pos_embedder.dim_spatial_range": torch.rand(5),
        "accum_iteration": torch.tensor(12345),
        "accum_train_in_hours": torch.tensor(2.5),
        "blocks.0.self_attn._extra_state": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "blocks.1.self_attn._extra_state": torch.zeros(0, dtype=torch.uint8),
    }


def denoiser_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Everything of the denoiser's file, without prefix: denoiser, conditioner, counters."""
    networks = build_networks(seed)
    adapter = networks["text_conditioner"].state_dict()
    return {
        **native_denoiser(networks["transformer"].state_dict()),
        **{f"llm_adapter.{name}": tensor.clone() for name, tensor in adapter.items()},
        **counters(),
    }


def write_split(
    models: Path, *, prefix: str = "net.", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write denoiser, text encoder and VAE as ComfyUI's users have them; return the denoiser."""
    networks = build_networks(seed)
    parts = {
        DENOISER_FILE: {prefix + n: t for n, t in denoiser_tensors(seed).items()},
        TEXT_FILE: {f"model.{n}": t for n, t in networks["text_encoder"].state_dict().items()},
        VAE_FILE: native_vae(networks["vae"].state_dict()),
    }
    for name, tensors in parts.items():
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(_cast(tensors, dtype), path, CONFIG_KEY if name == VAE_FILE else {"format": "pt"})
    write_tokenizers(models / "text_encoders")
    return models / DENOISER_FILE


def write_whole(path: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write everything to one file, as ComfyUI saves checkpoints."""
    networks = build_networks()
    prefixes = {
        "model.diffusion_model.": denoiser_tensors(),
        "text_encoders.qwen3_06b.transformer.model.": networks["text_encoder"].state_dict(),
        "vae.": native_vae(networks["vae"].state_dict()),
    }
    tensors = {prefix + n: t for prefix, state in prefixes.items() for n, t in state.items()}
    save_file(_cast(tensors, dtype), path, CONFIG_KEY)
    write_tokenizers(path.parent)
    return path


def write_folder(folder: Path) -> Path:
    """Write a diffusers folder, by the libraries' own save_pretrained."""
    networks: dict[str, Any] = build_networks()
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    write_tokenizers(folder)
    classes = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3Model"],
        "text_conditioner": ["diffusers", "AnimaTextConditioner"],
        "transformer": ["diffusers", "CosmosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "t5_tokenizer": ["transformers", "T5TokenizerFast"],
    }
    index = {name: [*found, {"subfolder": name}] for name, found in classes.items()}
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "modular_model_index.json").write_text(
        json.dumps({"_class_name": "AnimaModularPipeline", **index})
    )
    return folder


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }


@lru_cache(maxsize=2)
def byte_tokenizer(kind: str) -> Any:
    """A byte-level BPE without merges, with the special tokens of `qwen` or of `t5`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = QWEN_TOKENS if kind == "qwen" else T5_TOKENS
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*special, *characters))}
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    if kind == "t5":
        found.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token=special[0], eos_token=special[2 if kind == "qwen" else 1],
        additional_special_tokens=list(special[1:]), model_max_length=512,
    )  # fmt: skip


def write_tokenizers(folder: Path) -> None:
    byte_tokenizer("qwen").save_pretrained(str(folder / "tokenizer"))
    byte_tokenizer("t5").save_pretrained(str(folder / "t5_tokenizer"))
