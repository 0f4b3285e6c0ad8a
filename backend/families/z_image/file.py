"""Z-Image in single files: all in one, or the denoiser with its companions."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ..base.overrides import is_count
from ..base.shapes import Shapes
from ..base.single_file import Part, PartNames, SingleFiles, refuse_unusable, shapes_of
from ..base.stored import Companion, Description, StoredFile
from ..qwen3.companion import qwen3_companion
from ..qwen3.network import MARK, PREFIX, text_config
from ..unet.vae_files import OUR_FIRST, vae_config
from .config import DENOISER, SIDE, TEXT, VAE, check_parts, denoiser_config, published
from .names import FUSED, SPLIT
from .refusals import refuse_config, refuse_relatives

NAMES = PartNames(
    prefixes={
        DENOISER: ("", "model.diffusion_model.", "diffusion_model."),
        TEXT: ("text_encoders.qwen3_4b.transformer.model.", PREFIX, ""),
        VAE: ("vae.", "first_stage_model.", ""),
    },
    marks={
        DENOISER: (FUSED, SPLIT),
        TEXT: ((MARK,),),
        VAE: (("encoder.down.0.block.0.conv1.weight",), (OUR_FIRST,)),
    },
)
_CHANNELS = 16  # of the VAE's latents


def is_fused(names: Container[str], prefix: str) -> bool:
    """True for the spelling of ComfyUI, False for that of diffusers."""
    return prefix + FUSED[0] in names


def describe_file(file: StoredFile) -> Description:
    """Read the configs off a file and its companions; a CheckpointError says what is wrong."""
    refuse_unusable(file, "Z-Image")
    prefix = NAMES.prefix(DENOISER, file.tensors)
    assert prefix is not None, "only claimed files are described"
    fused = is_fused(file.tensors, prefix)
    config = describe_denoiser(shapes_of(file, prefix), fused=fused)
    return _FILES.describe(file, {DENOISER: Part(prefix, config)})


def describe_denoiser(shapes: Shapes, *, fused: bool) -> dict[str, Any]:
    """Return the config of a denoiser, in a file or in memory; raise for relatives of Z-Image."""
    refuse_relatives(shapes.file, dict(shapes.items()))
    config = denoiser_config(shapes, fused=fused)
    refuse_config(shapes.file, config)
    return config


def _config(component: str, shapes: Shapes) -> dict[str, Any]:
    read = text_config if component == TEXT else vae_config
    return read(shapes, published(component))


def _is_vae(file: StoredFile) -> bool:
    """True for a VAE of 16 channels; that of FLUX.2 has 32."""
    prefix = NAMES.prefix(VAE, file.tensors)
    entry = file.tensors.get(f"{prefix}decoder.conv_in.weight")
    return entry is not None and len(entry.shape) > 1 and entry.shape[1] == _CHANNELS


_FILES = SingleFiles(
    names=NAMES,
    companions=(
        qwen3_companion(NAMES, "4B", ("qwen_3_4b", "qwen3_4b"), text=TEXT, denoiser=DENOISER),
        Companion(VAE, "VAE of FLUX.1", ("ae", "flux_vae", "flux_ae"), ("vae",), _is_vae),
    ),
    config=_config,
    published=published,
    overridable={VAE: {"norm_num_groups": is_count, "sample_size": is_count}},
    check=check_parts,
    vae=VAE,
    side=SIDE,
)
