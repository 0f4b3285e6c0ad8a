"""Z-Image as a diffusers folder."""

from __future__ import annotations

from ..base.folders import denoiser_class, read_configs, refuse_quantised
from ..base.stored import Description, StoredFolder
from ..qwen3.network import check_folder
from .config import DENOISER, SIDE, TEXT, VAE, check_parts
from .refusals import refuse_config

CLASS = "ZImageTransformer2DModel"


def is_z_image(folder: StoredFolder) -> bool:
    """True for a folder whose denoiser is one of Z-Image."""
    return denoiser_class(folder, DENOISER) == CLASS


def describe_folder(folder: StoredFolder) -> Description:
    """Read the configs of a folder; a CheckpointError says why it cannot be used."""
    name = folder.path.name
    configs = read_configs(folder, (DENOISER, TEXT, VAE))
    refuse_config(name, configs[DENOISER])
    check_folder(name, configs[TEXT])
    refuse_quantised(name, configs, (DENOISER, TEXT))
    configs["scheduler"] = folder.read("scheduler/scheduler_config.json")
    check_parts(name, configs)
    return Description(
        configs=configs,
        prefixes={DENOISER: "", TEXT: "", VAE: ""},
        prediction="flow",
        resolution=SIDE,
    )
