"""FLUX.2 klein 4B as a diffusers folder."""

from __future__ import annotations

from ...errors import CheckpointError
from ..base.folders import denoiser_class, read_configs, refuse_quantised
from ..base.stored import Description, StoredFolder
from ..qwen3.network import check_folder
from .config import DENOISER, SIDE, TEXT, VAE, check_parts
from .refusals import distilled_klein, refuse_relatives

CLASS = "Flux2Transformer2DModel"


def is_flux2(folder: StoredFolder) -> bool:
    """True for a folder whose denoiser is one of FLUX.2."""
    return denoiser_class(folder, DENOISER) == CLASS


def describe_folder(folder: StoredFolder) -> Description:
    """Read the configs of a folder; a CheckpointError says why it cannot be used."""
    name = folder.path.name
    configs = read_configs(folder, (DENOISER, TEXT, VAE))
    refuse_relatives(name, configs[DENOISER])
    check_folder(name, configs[TEXT])
    refuse_quantised(name, configs, (DENOISER, TEXT))
    if configs[VAE].get("_class_name") != "AutoencoderKLFlux2":
        raise CheckpointError(
            f"{name}: its VAE is {configs[VAE].get('_class_name')!r}, not AutoencoderKLFlux2"
        )
    configs["scheduler"] = folder.read("scheduler/scheduler_config.json")
    check_parts(name, configs)
    stated = folder.index.get("is_distilled")
    distilled = distilled_klein(name) if stated is None else ""
    if stated:
        distilled = "FLUX.2 klein distilled to 4 steps, by `is_distilled` in model_index.json"
    return Description(
        configs=configs,
        prefixes={DENOISER: "", TEXT: "", VAE: ""},
        prediction="flow",
        resolution=SIDE,
        distilled=distilled,
    )
