"""Anima in single files: all in one, or the denoiser and its conditioner with companions."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ..base.overrides import is_count
from ..base.shapes import Shapes
from ..base.single_file import Part, PartNames, SingleFiles, from_folder, refuse_unusable, shapes_of
from ..base.stored import Companion, Description, StoredFile
from ..qwen3.companion import qwen3_companion
from ..qwen3.network import MARK, PREFIX, text_config
from .config import (
    CONDITIONER,
    DENOISER,
    SIDE,
    TEXT,
    VAE,
    check_parts,
    conditioner_config,
    denoiser_config,
    published,
    vae_config,
)
from .names import CONDITIONER as ADAPTER
from .names import OUR_TELLING, TELLING
from .refusals import no_conditioner, refuse_relatives
from .vae_names import FIRST, OUR_FIRST

NAMES = PartNames(
    prefixes={
        DENOISER: ("net.", "", "model.diffusion_model.", "diffusion_model."),
        TEXT: ("text_encoders.qwen3_06b.transformer.model.", PREFIX, ""),
        VAE: ("vae.", "first_stage_model.", ""),
    },
    marks={DENOISER: (TELLING,), TEXT: ((MARK,),), VAE: ((FIRST,), (OUR_FIRST,))},
)


def in_diffusers_names(names: Container[str]) -> bool:
    """True for the denoiser of a diffusers folder, given as a file."""
    return OUR_TELLING in names and "time_embed.t_embedder.linear_1.weight" in names


def describe_file(file: StoredFile) -> Description:
    """Read the configs off a file and its companions; a CheckpointError says what is wrong."""
    refuse_unusable(file, "Anima")
    if in_diffusers_names(file.tensors):
        raise from_folder(file, "modular_model_index.json", "Cosmos")
    prefix = NAMES.prefix(DENOISER, file.tensors)
    assert prefix is not None, "only claimed files are described"
    config = describe_denoiser(shapes_of(file, prefix))
    conditioner = conditioner_config(shapes_of(file, prefix + ADAPTER))
    own = {DENOISER: Part(prefix, config), CONDITIONER: Part(prefix + ADAPTER, conditioner)}
    return _FILES.describe(file, own)


def describe_denoiser(shapes: Shapes) -> dict[str, Any]:
    """Return the config of a denoiser, in a file or in memory; raise for relatives of Anima."""
    if ADAPTER + "blocks.0.cross_attn.q_proj.weight" not in shapes:
        raise no_conditioner(shapes.file)
    config = denoiser_config(shapes)
    refuse_relatives(shapes.file, config)
    return config


def _config(component: str, shapes: Shapes) -> dict[str, Any]:
    return text_config(shapes, published(TEXT)) if component == TEXT else vae_config(shapes)


def _is_vae(file: StoredFile) -> bool:
    return NAMES.prefix(VAE, file.tensors) is not None


_FILES = SingleFiles(
    names=NAMES,
    companions=(
        qwen3_companion(
            NAMES,
            "0.6B",
            ("qwen_3_06b_base", "qwen_3_06b", "qwen3_06b"),
            text=TEXT,
            denoiser=DENOISER,
        ),
        Companion(VAE, "VAE of Qwen-Image", ("qwen_image_vae",), ("vae",), _is_vae),
    ),
    config=_config,
    published=published,
    overridable={VAE: {"sample_size": is_count}},
    check=check_parts,
    vae=VAE,
    side=SIDE,
)
