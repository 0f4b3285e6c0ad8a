"""FLUX.2 klein 4B in single files: all in one, or the denoiser with its companions."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..base.overrides import apply_overrides, is_count
from ..base.refuse import quantised_kind
from ..base.shapes import Shapes
from ..base.stored import Companion, Description, StoredFile
from ..qwen3.network import MARK, PREFIX, text_config
from ..unet.vae_files import vae_config
from .config import (
    DENOISER,
    SIDE,
    TEXT,
    VAE,
    check_parts,
    denoiser_config,
    published,
)
from .names import QUERY_NORM, TELLING
from .refusals import distilled_klein, refuse_relatives

_PREFIXES = {
    DENOISER: ("", "model.diffusion_model.", "diffusion_model."),
    TEXT: ("text_encoders.qwen3_4b.transformer.model.", PREFIX, ""),
    VAE: ("vae.", "first_stage_model.", ""),
}
_MARKS = {
    DENOISER: (TELLING,),
    TEXT: (MARK,),
    VAE: ("bn.running_mean",),
}
_DIFFUSERS = "double_stream_modulation_img.linear.weight"
_OVERRIDABLE = {
    VAE: {"norm_num_groups": is_count, "sample_size": is_count},
    TEXT: {"max_position_embeddings": is_count},
}


def prefix_of(component: str, names: Container[str]) -> str | None:
    """Return what the names of a component begin with; None where a file does not hold it."""
    marks = _MARKS[component]
    return next((p for p in _PREFIXES[component] if all(p + m in names for m in marks)), None)


def norm_name(names: Container[str], prefix: str) -> str:
    """Return how a file names the weights of the norms of queries and keys."""
    return "scale" if f"{prefix}{QUERY_NORM}.scale" in names else "weight"


def in_diffusers_names(names: Container[str]) -> bool:
    """True for the denoiser of a diffusers folder, given as a file."""
    return _DIFFUSERS in names


def describe_file(file: StoredFile) -> Description:
    """Read the configs off a file and its companions; a CheckpointError says what is wrong."""
    if other := quantised_kind(file.tensors):
        raise CheckpointError(other.sentence(file.name))
    if file.decided:
        raise CheckpointError(
            f"{file.name} predicts a velocity, like every FLUX.2: leave `prediction` empty"
        )
    if in_diffusers_names(file.tensors):
        raise CheckpointError(
            f"{file.name} is the denoiser of a diffusers folder: give the folder that holds "
            "model_index.json, or the file in the names of Black Forest Labs and ComfyUI"
        )
    prefix = prefix_of(DENOISER, file.tensors)
    assert prefix is not None, "only claimed files are described"
    own = _shapes(file, prefix)
    configs = {DENOISER: denoiser_config(own, norm_name(file.tensors, prefix))}
    refuse_relatives(file.name, configs[DENOISER])
    prefixes, files = {DENOISER: prefix}, {}
    for companion in (TEXT_FILE, VAE_FILE):
        name, holder = companion.component, file
        if prefix_of(name, file.tensors) is None:
            if file.alone:
                continue
            holder = _beside(file, companion)
            assert holder.path is not None
            files[name] = holder.path
        found = prefixes[name] = prefix_of(name, holder.tensors) or ""
        configs[name] = _config(name, _shapes(holder, found), holder)
        if holder is not file:
            apply_overrides(holder.name, configs, holder.metadata, _OVERRIDABLE)
    configs["scheduler"] = published("scheduler")
    if len(prefixes) == len(_PREFIXES):
        apply_overrides(file.name, configs, file.metadata, _OVERRIDABLE)
        check_parts(file.name, configs)
    stem = Path(file.name).stem
    return Description(
        configs=configs,
        prefixes=prefixes,
        prediction="flow",
        resolution=configs.get(VAE, {}).get("sample_size", SIDE),
        files=files,
        distilled=distilled_klein(" ".join((stem, file.metadata.get("modelspec.title", "")))),
    )


def _beside(file: StoredFile, companion: Companion) -> StoredFile:
    if file.beside is None:
        raise CheckpointError(f"{file.name} has no {companion.what}: give it with its companions")
    return file.beside(companion)


def _config(component: str, shapes: Shapes, file: StoredFile) -> dict[str, Any]:
    if component == TEXT:
        return text_config(shapes, published(TEXT))
    return vae_config(shapes, published(VAE))


def _shapes(file: StoredFile, prefix: str) -> Shapes:
    shapes = {name: entry.shape for name, entry in file.tensors.items()}
    return Shapes(file.name, shapes, prefix)


def _is_qwen(file: StoredFile) -> bool:
    """True for the text encoder. Qwen3 8B, of klein 9B, has the same names: its width differs."""
    prefix = prefix_of(TEXT, file.tensors)
    if prefix is None or prefix_of(DENOISER, file.tensors) is not None:
        return False
    width = file.tensors.get(prefix + "embed_tokens.weight")
    layers = prefix + "layers.{}.self_attn.q_norm.weight"
    other = width is not None and width.shape[-1] in (1024, 2048, 4096, 5120)
    return width is not None and not other and layers.format(1) in file.tensors


def _is_vae(file: StoredFile) -> bool:
    prefix = prefix_of(VAE, file.tensors)
    return prefix is not None and prefix + "decoder.conv_in.weight" in file.tensors


TEXT_FILE = Companion(
    TEXT, "text encoder (Qwen3 4B)", ("qwen_3_4b", "qwen3_4b"), ("text_encoders", "clip"), _is_qwen
)
VAE_FILE = Companion(
    VAE, "VAE of FLUX.2", ("flux2-vae", "flux2_vae", "flux2_ae"), ("vae",), _is_vae
)
