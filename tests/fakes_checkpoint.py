"""Tiny random checkpoints of the true topologies, as single files and as diffusers folders.

The networks have the level, layer and name structure of the published models (SD 1.x and 2.x: four
levels; SDXL: three, with transformers 0, 2 and 10 deep), at widths of 32 and 64. The tensors come
from diffusers' and transformers' own classes, renamed by a table written here, independent of the
package's: whatever loads wrongly differs from the networks these functions return.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from resalign.backend.families.clip.networks import TOKENIZER_FOLDER

FAMILIES = ("sd1", "sd2", "sdxl")
TEXT_WIDTH, SECOND_TEXT_WIDTH = 32, 64


def build_networks(family: str = "sd1", *, seed: int = 0) -> dict[str, nn.Module]:
    """Random networks by component name (`unet`, `vae`, `text_encoder`, ...), in float32."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**_unet_config(family))
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            sample_size=64,
            scaling_factor=0.13025 if family == "sdxl" else 0.18215,
        )
        networks: dict[str, nn.Module] = {"unet": unet}
        first = CLIPTextConfig(**_text_config("gelu" if family == "sd2" else "quick_gelu"))
        networks["text_encoder"] = CLIPTextModel(first)
        if family == "sdxl":
            second = CLIPTextConfig(**_text_config("gelu", SECOND_TEXT_WIDTH))
            networks["text_encoder_2"] = CLIPTextModelWithProjection(second)
        networks["vae"] = vae
        for network in networks.values():
            for tensor in network.parameters():
                if tensor.dim() == 1:  # norms and biases start at 1 and 0: no mix-up would show
                    tensor.data.add_(torch.randn_like(tensor), alpha=0.02)
    return {name: network.eval().requires_grad_(False) for name, network in networks.items()}


def write_tiny_checkpoint(
    path: str | Path,
    family: str = "sd1",
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    prediction_type: str | None = None,
    metadata: dict[str, str] | None = None,
    extra: dict[str, Tensor] | None = None,
    drop: tuple[str, ...] = (),
) -> Path:
    """Write a single LDM-keyed `.safetensors` file of 9 (SDXL: 23) MB in fp16; return its path.

    Its metadata say that its native side is 64 pixels.

    prediction_type: None leaves the file without a marker (ε); `v_prediction` adds `v_pred`.
    extra: tensors to add or replace, by their names in the file. drop: names to leave out.
    """
    tensors = _random_tensors(family, seed)
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    if prediction_type == "v_prediction":
        stored["v_pred"] = torch.tensor([])
    stored |= extra or {}
    for name in drop:
        del stored[name]
    stated = {"resalign.config": '{"unet": {"sample_size": 8}}'} | (metadata or {})
    save_file(stored, str(path), metadata=stated)
    return Path(path)


def write_tiny_folder(
    path: str | Path,
    family: str = "sd1",
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    prediction_type: str | None = None,
) -> Path:
    """Write a diffusers folder (old layout: text encoders with `text_model.`) and return it."""
    path = Path(path)
    networks = _kept_networks(family, seed)
    index: dict[str, object] = {
        "_class_name": f"StableDiffusion{'XL' * (family == 'sdxl')}Pipeline",
        "_diffusers_version": "0.31.0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    for name, network in networks.items():
        folder = path / name
        folder.mkdir(parents=True)
        text = name.startswith("text_encoder")
        index[name] = ["transformers" if text else "diffusers", type(network).__name__]
        state = {
            _old_text_name(key) if text else key: tensor.to(dtype).contiguous()
            for key, tensor in network.state_dict().items()
        }
        stem = "model" if text else "diffusion_pytorch_model"
        save_file(state, str(folder / f"{stem}.safetensors"), metadata={"format": "pt"})
        if text:
            config = {"model_type": "clip_text_model", **_config_of(network)}
        else:
            config = {"_class_name": type(network).__name__, **dict(network.config)}
        (folder / "config.json").write_text(json.dumps(config, indent=1))
    (path / "model_index.json").write_text(json.dumps(index, indent=1))
    (path / "scheduler").mkdir()
    scheduler = {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type or "epsilon",
    }
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=1))
    return path


def config_folder(info: Any, target: Path) -> Path:
    """Write a diffusers folder without weights that describes a detected checkpoint: for
    `from_single_file(file, config=folder)`, offline and for any size."""
    family = info.family
    index = family.config("model_index")
    configs = {name: info.configs[name] for name in family.components}
    folders = {
        **{f"{name}/config.json": config for name, config in configs.items()},
        "scheduler/scheduler_config.json": info.configs["scheduler"],
        "model_index.json": index,
    }
    for name in family.text_encoders:
        tokenizer = name.replace("text_encoder", "tokenizer")
        folders[f"{tokenizer}/tokenizer_config.json"] = family.config(tokenizer)
        for file in ("vocab.json", "merges.txt"):
            (target / tokenizer).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(TOKENIZER_FOLDER / file, target / tokenizer / file)
    for name, value in folders.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(json.dumps(value))
    return target


def write_sparse(
    path: str | Path, tensors: Mapping[str, Tensor], dtype: str = "F16", metadata=None
) -> Path:
    """Write a file with these tensors' shapes and zeros for data, which take no room on disk.

    For files of the true size: `tensors` may be on the meta device. dtype: as in the format.
    """
    width = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}[dtype]
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * width
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return Path(path)


def ldm_tensors(
    networks: dict[str, nn.Module], family: str = "sd1", *, seed: int = 0
) -> dict[str, Tensor]:
    """All tensors of the networks under the names of a single-file checkpoint."""
    found = {}
    for name, tensor in networks["unet"].state_dict().items():
        levels = 3 if family == "sdxl" else 4
        found["model.diffusion_model." + _unet_name(name, levels)] = tensor
    for name, tensor in networks["vae"].state_dict().items():
        matrix = ".attentions.0.to_" in name and name.endswith("weight")
        found["first_stage_model." + _vae_name(name)] = (
            tensor[..., None, None] if matrix else tensor
        )
    first = networks["text_encoder"].state_dict()
    if family == "sd1":
        prefix = "cond_stage_model.transformer."
        found |= {prefix + _old_text_name(name): tensor for name, tensor in first.items()}
    if family == "sd2":
        found |= _open_clip(first, "cond_stage_model.model.", unused_layer=True, seed=seed)
    if family == "sdxl":
        prefix = "conditioner.embedders.0.transformer."
        found |= {prefix + _old_text_name(name): tensor for name, tensor in first.items()}
        second = networks["text_encoder_2"].state_dict()
        found |= _open_clip(second, "conditioner.embedders.1.model.")
    return {name: tensor for name, tensor in found.items() if "position_ids" not in name}


@lru_cache(maxsize=4)
def _kept_networks(family: str, seed: int) -> dict[str, nn.Module]:
    """Networks that are written to files and never changed."""
    return build_networks(family, seed=seed)


@lru_cache(maxsize=4)
def _random_tensors(family: str, seed: int) -> dict[str, Tensor]:
    return ldm_tensors(_kept_networks(family, seed), family, seed=seed)


def _unet_config(family: str) -> dict[str, object]:
    common = {"sample_size": 8, "layers_per_block": 2}
    if family == "sdxl":
        return common | {
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (1, 1, 1),
            "cross_attention_dim": TEXT_WIDTH + SECOND_TEXT_WIDTH,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": SECOND_TEXT_WIDTH + 6 * 256,
        }
    linear = family == "sd2"
    return common | {
        "block_out_channels": (32, 32, 64, 64),
        "attention_head_dim": (1, 1, 1, 1) if linear else 8,
        "cross_attention_dim": TEXT_WIDTH,
        "use_linear_projection": linear,
        "upcast_attention": linear,
    }


def _text_config(activation: str, width: int = TEXT_WIDTH) -> dict[str, object]:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "max_position_embeddings": 77,
        "projection_dim": width,
        "hidden_act": activation,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }


def _config_of(network: nn.Module) -> dict[str, object]:
    return _text_config(network.config.hidden_act, network.config.hidden_size)


def _old_text_name(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection")) else "text_model." + name


_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def _unet_name(name: str, levels: int) -> str:
    """LDM name of one tensor, by position: three input blocks and three output blocks a level."""
    module, leaf = name.rsplit(".", 1)
    if module in _UNET_TOP:
        return f"{_UNET_TOP[module]}.{leaf}"
    if found := re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name):
        side, level, kind, layer, rest = found.groups()
        number = 3 * int(level) + int(layer) + (side == "down")
        if kind == "resnets":
            inner, leaf = rest.rsplit(".", 1)
            rest, slot = f"{_RESNET[inner]}.{leaf}", 0
        elif kind == "attentions":
            slot = 1
        elif kind == "downsamplers":
            number, slot, rest = 3 * int(level) + 3, 0, rest.replace("conv", "op")
        else:  # upsamplers come after the attention, where there is one
            number = 3 * int(level) + 2
            slot = 2 if (level != "0" if levels == 4 else level != "2") else 1
        blocks = "input_blocks" if side == "down" else "output_blocks"
        return f"{blocks}.{number}.{slot}.{rest}"
    found = re.match(r"mid_block\.(\w+)\.(\d)\.(.*)", name)
    assert found, name
    kind, layer, rest = found.groups()
    if kind == "attentions":
        return f"middle_block.1.{rest}"
    inner, leaf = rest.rsplit(".", 1)
    return f"middle_block.{2 * int(layer)}.{_RESNET[inner]}.{leaf}"


def _vae_name(name: str) -> str:
    for pattern, new in (
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_(.)", r"mid.attn_1.\1"),
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ):
        name = re.sub(pattern, new, name)
    if found := re.match(r"(decoder)\.up_blocks\.(\d)\.(resnets|upsamplers)\.(.*)", name):
        level, rest = 3 - int(found[2]), found[4]
        if found[3] == "resnets":
            return f"decoder.up.{level}.block.{rest}"
        return f"decoder.up.{level}.upsample.{rest.removeprefix('0.')}"
    return name


def _open_clip(
    state: dict[str, Tensor], prefix: str, *, unused_layer: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """OpenCLIP's names; SD 2.x files have one more layer than diffusers builds."""
    state = {_old_text_name(name).removeprefix("text_model."): t for name, t in state.items()}
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    noise = torch.Generator().manual_seed(seed)
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T
    else:
        found["text_projection"] = torch.randn(TEXT_WIDTH, TEXT_WIDTH, generator=noise)
    layers = 1 + max(int(n.split(".")[2]) for n in state if n.startswith("encoder.layers."))
    names = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    for layer in range(layers):
        clip, ours = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for leaf in ("weight", "bias"):
            for theirs, name in names.items():
                found[f"{ours}{name}.{leaf}"] = state[f"{clip}{theirs}.{leaf}"]
            stacked = [state[f"{clip}self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"{ours}attn.in_proj_{leaf}"] = torch.cat(stacked)
    if unused_layer:
        last = f"transformer.resblocks.{layers - 1}."
        for name in [name for name in found if name.startswith(last)]:
            copy = torch.randn(found[name].shape, generator=noise)
            found[name.replace(last, f"transformer.resblocks.{layers}.")] = copy
    return {prefix + name: tensor for name, tensor in found.items()}
