"""A diffusers folder as a checkpoint: its configs, its weight files, its refusals.

A folder states its architecture in JSON files, so nothing is inferred from shapes; the loader
checks every tensor against what the configs promise. Weights may be sharded. Only `.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .detect import CheckpointInfo, check_configs, dtypes_of
from .family import components_of, text_encoders_of
from .header import Header, read_header

_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # else `model`
# Defaults of the classes, for fields that old folders leave out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "unet": {
        "in_channels": 4, "out_channels": 4, "sample_size": 64, "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1280,
        "attention_head_dim": 8, "norm_num_groups": 32, "use_linear_projection": False,
        "transformer_layers_per_block": 1,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
    "vae": {"norm_num_groups": 32, "scaling_factor": 0.18215, "latent_channels": 4,
            "layers_per_block": 1, "block_out_channels": [64]},
    "text_encoder": {"vocab_size": 49408, "hidden_size": 512, "max_position_embeddings": 77,
                     "num_hidden_layers": 12, "hidden_act": "quick_gelu"},
    "scheduler": {"prediction_type": "epsilon", "num_train_timesteps": 1000},
}  # fmt: skip
# Fields of a U-Net config that must have no value: unCLIP, LCM, IF and the like.
_MUST_BE_UNSET = (
    "class_embed_type", "encoder_hid_dim", "encoder_hid_dim_type", "time_cond_proj_dim",
    "num_class_embeds", "dual_cross_attention", "only_cross_attention",
)  # fmt: skip


def detect_folder(path: Path) -> CheckpointInfo:
    """What the diffusers folder at `path` holds; a CheckpointError says why it cannot be used."""
    index = _model_index(path)
    try:
        return _detect(path, index)
    except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}: its config files contradict themselves or diffusers' form "
            f"({type(error).__name__}: {error}); fetch the folder again"
        ) from error


def _detect(path: Path, index: dict[str, Any]) -> CheckpointInfo:
    unet = _config(path, "unet")
    _check_unet(path, unet)
    if unet.get("addition_embed_type") == "text_time":
        if not (path / "text_encoder").is_dir() or not index.get("text_encoder", [None])[0]:
            raise CheckpointError(f"{path} is the SDXL refiner: harden the SDXL base instead")
        family = "sdxl"
    else:
        gelu = _config(path, "text_encoder").get("hidden_act") == "gelu"
        family = "sd2" if unet["use_linear_projection"] or gelu else "sd1"
    configs = {"unet": unet, "vae": _config(path, "vae")}
    for name in text_encoders_of(family):
        configs[name] = _config(path, name)
        if configs[name].get("model_type", "clip_text_model") != "clip_text_model":
            raise CheckpointError(
                f"{path}: its {name} is a {configs[name]['model_type']}, not CLIP; only SD 1.x, "
                "SD 2.x and SDXL base folders can be hardened"
            )
    configs["scheduler"] = _config(path, "scheduler", "scheduler_config.json")
    check_configs(path.name, family, configs)

    files = {name: _weight_files(path / name, _STEMS.get(name, "model")) for name in configs
             if name != "scheduler"}  # fmt: skip
    headers = {file: read_header(file) for group in files.values() for file in group}
    return CheckpointInfo(
        path=path,
        family=family,
        layout="diffusers",
        prediction_type=configs["scheduler"]["prediction_type"],
        zero_terminal_snr=bool(configs["scheduler"].get("rescale_betas_zero_snr")),
        configs=configs,
        prefixes=dict.fromkeys(files, ""),
        files=files,
        headers=headers,
        dtypes={
            name: dtypes_of([headers[file] for file in files[name]])
            for name in components_of(family)
        },
        tensor_count=sum(len(header.tensors) for header in headers.values()),
        bytes=sum(header.data_start + header.data_bytes for header in headers.values()),
        metadata=_folder_metadata(headers),
    )


def _model_index(path: Path) -> dict[str, Any]:
    if not (path / "model_index.json").is_file():
        single = sorted(file.name for file in path.glob("*.safetensors"))
        hint = f"; or give one of its files, e.g. {single[0]}" if single else ""
        raise CheckpointError(
            f"{path} is no diffusers folder (it has no model_index.json): give the folder that "
            f"holds model_index.json, unet and vae{hint}"
        )
    index = _read_json(path / "model_index.json")
    if "unet" not in index:
        raise CheckpointError(
            f"{path} holds a {index.get('_class_name', 'model without a U-Net')} (SD3, Flux or "
            "alike): only SD 1.x, SD 2.x and SDXL base checkpoints can be hardened"
        )
    return index


def _check_unet(path: Path, unet: dict[str, Any]) -> None:
    kind = unet.get("_class_name", "UNet2DConditionModel")
    depths = unet["transformer_layers_per_block"]
    unusual = [key for key in _MUST_BE_UNSET if unet.get(key)]
    if unet.get("addition_embed_type") not in (None, "text_time"):
        unusual.append("addition_embed_type")
    if unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") != "UNetMidBlock2DCrossAttn":
        unusual.append("mid_block_type")
    if isinstance(depths, list) and any(isinstance(depth, list) for depth in depths):
        unusual.append("transformer_layers_per_block")  # differs within a block: SSD-1B, KOALA
    if not isinstance(unet["layers_per_block"], int):
        unusual.append("layers_per_block")
    if kind != "UNet2DConditionModel" or unusual:
        raise CheckpointError(
            f"{path}: its U-Net ({kind}) is of another kind ({', '.join(unusual) or 'class'}): "
            "only SD 1.x, SD 2.x and SDXL base checkpoints, and fine-tunes of them, can be hardened"
        )


def _config(path: Path, component: str, file: str = "config.json") -> dict[str, Any]:
    defaults = _DEFAULTS[component.removesuffix("_2")]
    return defaults | _read_json(path / component / file)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 1_000_000:
            raise CheckpointError(f"{path} is too large for a config file: fetch the folder again")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: the folder is incomplete; fetch all of it again"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is no JSON object: fetch the folder again")
    return value


def _weight_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """The component's weight files: the full ones where there are variants as well."""
    for variant in ("", ".fp16"):
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return (single,)
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return _shards(index)
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights only as a pickle ({pickles[0]}); opening one can run code, "
            "so they are refused: fetch the .safetensors version, or convert it"
        )
    raise CheckpointError(
        f"{folder} has no weights ({stem}.safetensors): the folder is incomplete; fetch it again"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(_read_json(index)["weight_map"].values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names a file outside of its folder: {name!r}")
    return tuple(index.parent / name for name in names)


def _folder_metadata(headers: dict[Path, Header]) -> dict[str, str]:
    """What the weight files say of themselves, all in one; the U-Net's file comes first."""
    found: dict[str, str] = {}
    for header in headers.values():
        found = header.metadata | found
    return found
