"""Z-Image as a diffusers folder."""

from __future__ import annotations

from typing import Any

from ...errors import CheckpointError
from ..base.stored import Description, StoredFolder
from ..qwen3.network import check_folder
from .config import DENOISER, SIDE, TEXT, VAE, check_parts
from .refusals import refuse_config

CLASS = "ZImageTransformer2DModel"


def is_z_image(folder: StoredFolder) -> bool:
    """True for a folder whose denoiser is one of Z-Image."""
    named = folder.index.get(DENOISER)
    return isinstance(named, list) and len(named) > 1 and named[1] == CLASS


def describe_folder(folder: StoredFolder) -> Description:
    """Read the configs of a folder; a CheckpointError says why it cannot be used."""
    name = folder.path.name
    configs: dict[str, dict[str, Any]] = {
        component: folder.read(f"{component}/config.json") for component in (DENOISER, TEXT, VAE)
    }
    refuse_config(name, configs[DENOISER])
    check_folder(name, configs[TEXT])
    for component in (DENOISER, TEXT):
        if configs[component].get("quantization_config"):
            raise CheckpointError(
                f"{name}: its {component} is quantised (quantization_config): give the bf16 folder"
            )
    configs["scheduler"] = folder.read("scheduler/scheduler_config.json")
    check_parts(name, configs)
    return Description(
        configs=configs,
        prefixes={DENOISER: "", TEXT: "", VAE: ""},
        prediction="flow",
        resolution=SIDE,
    )
