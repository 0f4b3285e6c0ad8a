"""FLUX.2 klein 4B in single files: all in one, or the denoiser with its companions."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from ..base.overrides import is_count
from ..base.shapes import Shapes
from ..base.single_file import Part, PartNames, SingleFiles, from_folder, refuse_unusable, shapes_of
from ..base.stored import Companion, Description, StoredFile
from ..qwen3.companion import qwen3_companion
from ..qwen3.network import MARK, PREFIX, text_config
from ..unet.vae_files import vae_config
from .config import DENOISER, SIDE, TEXT, VAE, check_parts, denoiser_config, published
from .names import QUERY_NORM, TELLING
from .refusals import distilled_klein, refuse_relatives

NAMES = PartNames(
    prefixes={
        DENOISER: ("", "model.diffusion_model.", "diffusion_model."),
        TEXT: ("text_encoders.qwen3_4b.transformer.model.", PREFIX, ""),
        VAE: ("vae.", "first_stage_model.", ""),
    },
    marks={DENOISER: ((TELLING,),), TEXT: ((MARK,),), VAE: (("bn.running_mean",),)},
)
_DIFFUSERS = "double_stream_modulation_img.linear.weight"


def norm_name(names: Container[str], prefix: str) -> str:
    """Return how a file names the weights of the norms of queries and keys."""
    return "scale" if f"{prefix}{QUERY_NORM}.scale" in names else "weight"


def in_diffusers_names(names: Container[str]) -> bool:
    """True for the denoiser of a diffusers folder, given as a file."""
    return _DIFFUSERS in names


def describe_file(file: StoredFile) -> Description:
    """Read the configs off a file and its companions; a CheckpointError says what is wrong."""
    refuse_unusable(file, "FLUX.2")
    if in_diffusers_names(file.tensors):
        raise from_folder(file, "model_index.json", "Black Forest Labs")
    prefix = NAMES.prefix(DENOISER, file.tensors)
    assert prefix is not None, "only claimed files are described"
    config = denoiser_config(shapes_of(file, prefix), norm_name(file.tensors, prefix))
    refuse_relatives(file.name, config)
    stated = (Path(file.name).stem, file.metadata.get("modelspec.title", ""))
    return _FILES.describe(
        file, {DENOISER: Part(prefix, config)}, distilled=distilled_klein(" ".join(stated))
    )


def _config(component: str, shapes: Shapes) -> dict[str, Any]:
    read = text_config if component == TEXT else vae_config
    return read(shapes, published(component))


def _is_vae(file: StoredFile) -> bool:
    prefix = NAMES.prefix(VAE, file.tensors)
    return prefix is not None and prefix + "decoder.conv_in.weight" in file.tensors


_FILES = SingleFiles(
    names=NAMES,
    companions=(
        qwen3_companion(
            NAMES, "4B", ("qwen_3_4b", "qwen3_4b"), text=TEXT, denoiser=DENOISER, layers=2
        ),
        Companion(VAE, "VAE of FLUX.2", ("flux2-vae", "flux2_vae", "flux2_ae"), ("vae",), _is_vae),
    ),
    config=_config,
    published=published,
    overridable={
        VAE: {"norm_num_groups": is_count, "sample_size": is_count},
        TEXT: {"max_position_embeddings": is_count},
    },
    check=check_parts,
    vae=VAE,
    side=SIDE,
)
