"""A U-Net checkpoint as a diffusers folder: its configs, and its refusals.

A folder states its architecture in JSON files, so nothing is inferred from shapes; the loader
checks every tensor against what the configs promise.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..base.stored import Description, StoredFolder
from .checks import check_configs, native_side
from .scheduler import check_scheduler
from .spec import UNetSpec, Variant

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
_CONSISTENCY = ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline")
_MUST_BE_UNSET = (
    "class_embed_type", "encoder_hid_dim", "encoder_hid_dim_type", "time_cond_proj_dim",
    "num_class_embeds", "dual_cross_attention", "only_cross_attention",
)  # fmt: skip


def variant_of_folder(folder: StoredFolder) -> Variant | None:
    """Tell which kind of U-Net checkpoint a folder is; None where it is not one."""
    if "unet" not in folder.index:
        return None
    unet = _config(folder, "unet")
    _check_unet(folder.path, unet)
    if unet.get("addition_embed_type") == "text_time":
        if (
            not (folder.path / "text_encoder").is_dir()
            or not folder.index.get("text_encoder", [None])[0]
        ):
            raise CheckpointError(
                f"{folder.path} is the SDXL refiner: harden the SDXL base instead"
            )
        return "sized"
    gelu = _config(folder, "text_encoder").get("hidden_act") == "gelu"
    return "linear" if unet["use_linear_projection"] or gelu else "plain"


def describe_folder(spec: UNetSpec, folder: StoredFolder) -> Description:
    """Read the configs of a folder; a CheckpointError says why it cannot be used."""
    configs = {"unet": _config(folder, "unet"), "vae": _config(folder, "vae")}
    for text in spec.texts:
        config = configs[text.component] = _config(folder, text.component)
        if config.get("model_type", "clip_text_model") != "clip_text_model":
            raise CheckpointError(
                f"{folder.path}: its {text.component} is a {config['model_type']}, not CLIP; only "
                "SD 1.x, SD 2.x and SDXL base folders can be hardened"
            )
    configs["scheduler"] = _config(folder, "scheduler", "scheduler_config.json")
    check_scheduler(folder.path.name, configs["scheduler"], folder.index.get("scheduler"))
    check_configs(folder.path.name, spec, configs)
    return Description(
        configs=configs,
        prefixes=dict.fromkeys((name for name in configs if name != "scheduler"), ""),
        prediction=configs["scheduler"]["prediction_type"],
        resolution=native_side(configs),
        names=_origins(folder, configs["unet"]),
    )


def _origins(folder: StoredFolder, unet: dict[str, Any]) -> tuple[str, ...]:
    """Names of what a folder was made from, without the local folders that they may lie in."""
    named = [folder.index.get("_name_or_path"), unet.get("_name_or_path")]
    found = [re.split(r"[\\/]", name.rstrip("\\/"))[-1] for name in named if isinstance(name, str)]
    pipeline = folder.index.get("_class_name")
    return (*found, "LCM") if pipeline in _CONSISTENCY else tuple(found)


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
    if unusual == ["time_cond_proj_dim"]:
        raise CheckpointError(
            f"{path} is a latent consistency model (LCM) that takes its guidance as an input "
            "(time_cond_proj_dim): such distilled models cannot be hardened; harden the base and "
            "distil it afterwards"
        )
    if kind != "UNet2DConditionModel" or unusual:
        raise CheckpointError(
            f"{path}: its U-Net ({kind}) is of another kind ({', '.join(unusual) or 'class'}): "
            "only SD 1.x, SD 2.x and SDXL base checkpoints, and fine-tunes of them, can be hardened"
        )


def _config(folder: StoredFolder, component: str, file: str = "config.json") -> dict[str, Any]:
    return _DEFAULTS[component.removesuffix("_2")] | folder.read(f"{component}/{file}")
