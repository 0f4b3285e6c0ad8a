"""Anima in single files: all in one, or the denoiser and its conditioner with companions."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ...errors import CheckpointError
from ..base.overrides import apply_overrides, is_count
from ..base.refuse import quantised_kind
from ..base.shapes import Shapes
from ..base.stored import Companion, Description, StoredFile
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

_PREFIXES = {
    DENOISER: ("net.", "", "model.diffusion_model.", "diffusion_model."),
    TEXT: ("text_encoders.qwen3_06b.transformer.model.", PREFIX, ""),
    VAE: ("vae.", "first_stage_model.", ""),
}
_MARKS = {DENOISER: (TELLING,), TEXT: ((MARK,),), VAE: ((FIRST,), (OUR_FIRST,))}  # any of these
_OTHER_QWEN = (2048, 2560, 4096, 5120)  # widths of Qwen3 1.7B, 4B, 8B, 14B and 32B
_OVERRIDABLE = {VAE: {"sample_size": is_count}}


def prefix_of(component: str, names: Container[str]) -> str | None:
    """Return what the names of a component begin with; None where a file does not hold it."""
    return next(
        (
            prefix
            for prefix in _PREFIXES[component]
            for marks in _MARKS[component]
            if all(prefix + mark in names for mark in marks)
        ),
        None,
    )


def in_diffusers_names(names: Container[str]) -> bool:
    """True for the denoiser of a diffusers folder, given as a file."""
    return OUR_TELLING in names and "time_embed.t_embedder.linear_1.weight" in names


def describe_file(file: StoredFile) -> Description:
    """Read the configs off a file and its companions; a CheckpointError says what is wrong."""
    prefix = _usable(file)
    configs = {DENOISER: describe_denoiser(_shapes(file, prefix))}
    configs[CONDITIONER] = conditioner_config(_shapes(file, prefix + ADAPTER))
    prefixes, files = {DENOISER: prefix, CONDITIONER: prefix + ADAPTER}, {}
    for companion in (TEXT_FILE, VAE_FILE):
        name, holder = companion.component, file
        if prefix_of(name, file.tensors) is None:
            if file.alone:
                continue
            holder = _beside(file, companion)
            assert holder.path is not None
            files[name] = holder.path
        found = prefixes[name] = prefix_of(name, holder.tensors) or ""
        configs[name] = _config(name, _shapes(holder, found))
        if holder is not file:
            apply_overrides(holder.name, configs, holder.metadata, _OVERRIDABLE)
    configs["scheduler"] = published("scheduler")
    if TEXT in configs and VAE in configs:
        apply_overrides(file.name, configs, file.metadata, _OVERRIDABLE)
        check_parts(file.name, configs)
    return Description(
        configs=configs,
        prefixes=prefixes,
        prediction="flow",
        resolution=configs.get(VAE, {}).get("sample_size", SIDE),
        files=files,
    )


def describe_denoiser(shapes: Shapes) -> dict[str, Any]:
    """Return the config of a denoiser, in a file or in memory; raise for relatives of Anima."""
    if ADAPTER + "blocks.0.cross_attn.q_proj.weight" not in shapes:
        raise no_conditioner(shapes.file)
    config = denoiser_config(shapes)
    refuse_relatives(shapes.file, config)
    return config


def _usable(file: StoredFile) -> str:
    """Return the denoiser's prefix; raise for a file that cannot be read."""
    if other := quantised_kind(file.tensors):
        raise CheckpointError(other.sentence(file.name))
    if file.decided:
        raise CheckpointError(
            f"{file.name} predicts a velocity, like every Anima: leave `prediction` empty"
        )
    if in_diffusers_names(file.tensors):
        raise CheckpointError(
            f"{file.name} is the denoiser of a diffusers folder: give the folder that holds "
            "modular_model_index.json, or the file in the names of Cosmos and ComfyUI"
        )
    prefix = prefix_of(DENOISER, file.tensors)
    assert prefix is not None, "only claimed files are described"
    return prefix


def _beside(file: StoredFile, companion: Companion) -> StoredFile:
    if file.beside is None:
        raise CheckpointError(f"{file.name} has no {companion.what}: give it with its companions")
    return file.beside(companion)


def _config(component: str, shapes: Shapes) -> dict[str, Any]:
    return text_config(shapes, published(TEXT)) if component == TEXT else vae_config(shapes)


def _shapes(file: StoredFile, prefix: str) -> Shapes:
    return Shapes(file.name, {name: each.shape for name, each in file.tensors.items()}, prefix)


def _is_qwen(file: StoredFile) -> bool:
    """True for the text encoder. Larger Qwen3 have the same names: their widths differ."""
    prefix = prefix_of(TEXT, file.tensors)
    if prefix is None or prefix_of(DENOISER, file.tensors) is not None:
        return False
    width = file.tensors.get(prefix + "embed_tokens.weight")
    return width is not None and width.shape[-1] not in _OTHER_QWEN


def _is_vae(file: StoredFile) -> bool:
    return prefix_of(VAE, file.tensors) is not None


TEXT_FILE = Companion(
    TEXT, "text encoder (Qwen3 0.6B)", ("qwen_3_06b_base", "qwen_3_06b", "qwen3_06b"),
    ("text_encoders", "clip"), _is_qwen,
)  # fmt: skip
VAE_FILE = Companion(VAE, "VAE of Qwen-Image", ("qwen_image_vae",), ("vae",), _is_vae)
