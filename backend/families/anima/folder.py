"""Anima as a diffusers folder, which lists its components in modular_model_index.json."""

from __future__ import annotations

from ...errors import CheckpointError
from ..base.folders import read_configs, refuse_quantised
from ..base.stored import Description, StoredFolder
from ..qwen3.network import check_folder
from .config import CONDITIONER, DENOISER, SIDE, TEXT, VAE, check_parts
from .refusals import refuse_relatives

_CLASSES = {
    DENOISER: "CosmosTransformer3DModel",
    CONDITIONER: "AnimaTextConditioner",
    VAE: "AutoencoderKLQwenImage",
}


def is_anima(folder: StoredFolder) -> bool:
    """True for a folder that has a text conditioner."""
    return CONDITIONER in folder.index or "Anima" in str(folder.index.get("_class_name"))


def describe_folder(folder: StoredFolder) -> Description:
    """Read the configs of a folder; a CheckpointError says why it cannot be used."""
    name = folder.path.name
    configs = read_configs(folder, (DENOISER, TEXT, CONDITIONER, VAE))
    check_folder(name, configs[TEXT])
    for component, wanted in _CLASSES.items():
        found = configs[component].get("_class_name")
        if found != wanted:
            raise CheckpointError(f"{name}: its {component} is {found!r}, not {wanted}")
    refuse_quantised(name, configs, (DENOISER, TEXT))
    refuse_relatives(name, configs[DENOISER])
    configs["scheduler"] = folder.read("scheduler/scheduler_config.json")
    check_parts(name, configs)
    return Description(
        configs=configs,
        prefixes=dict.fromkeys((DENOISER, TEXT, CONDITIONER, VAE), ""),
        prediction="flow",
        resolution=SIDE,
    )
