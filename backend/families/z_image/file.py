"""Z-Image in single files: all in one, or the denoiser with its companions."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ...errors import CheckpointError
from ..base.overrides import apply_overrides, is_count
from ..base.refuse import quantised_kind
from ..base.shapes import Shapes
from ..base.stored import Companion, Description, StoredFile
from ..qwen3.network import MARK, PREFIX, text_config
from ..unet.vae_files import OUR_FIRST, vae_config
from .config import DENOISER, SIDE, TEXT, VAE, check_parts, denoiser_config, published
from .names import FUSED, SPLIT
from .refusals import refuse_config, refuse_relatives

_PREFIXES = {
    DENOISER: ("", "model.diffusion_model.", "diffusion_model."),
    TEXT: ("text_encoders.qwen3_4b.transformer.model.", PREFIX, ""),
    VAE: ("vae.", "first_stage_model.", ""),
}
_MARKS = {  # any of these
    DENOISER: (FUSED, SPLIT),
    TEXT: ((MARK,),),
    VAE: (("encoder.down.0.block.0.conv1.weight",), (OUR_FIRST,)),
}
_OTHER_QWEN = (1024, 2048, 4096, 5120)  # widths of Qwen3 0.6B, 1.7B, 8B, 14B and 32B
_CHANNELS = 16  # of the VAE's latents
_OVERRIDABLE = {VAE: {"norm_num_groups": is_count, "sample_size": is_count}}


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


def is_fused(names: Container[str], prefix: str) -> bool:
    """True for the spelling of ComfyUI, False for that of diffusers."""
    return prefix + FUSED[0] in names


def describe_file(file: StoredFile) -> Description:
    """Read the configs off a file and its companions; a CheckpointError says what is wrong."""
    if other := quantised_kind(file.tensors):
        raise CheckpointError(other.sentence(file.name))
    if file.decided:
        raise CheckpointError(
            f"{file.name} predicts a velocity, like every Z-Image: leave `prediction` empty"
        )
    prefix = prefix_of(DENOISER, file.tensors)
    assert prefix is not None, "only claimed files are described"
    fused = is_fused(file.tensors, prefix)
    configs = {DENOISER: describe_denoiser(_shapes(file, prefix), fused=fused)}
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
        configs[name] = _config(name, _shapes(holder, found))
        if holder is not file:
            apply_overrides(holder.name, configs, holder.metadata, _OVERRIDABLE)
    configs["scheduler"] = published("scheduler")
    if len(prefixes) == len(_PREFIXES):
        apply_overrides(file.name, configs, file.metadata, _OVERRIDABLE)
        check_parts(file.name, configs)
    return Description(
        configs=configs,
        prefixes=prefixes,
        prediction="flow",
        resolution=configs.get(VAE, {}).get("sample_size", SIDE),
        files=files,
    )


def describe_denoiser(shapes: Shapes, *, fused: bool) -> dict[str, Any]:
    """Return the config of a denoiser, in a file or in memory; raise for relatives of Z-Image."""
    refuse_relatives(shapes.file, dict(shapes.items()))
    config = denoiser_config(shapes, fused=fused)
    refuse_config(shapes.file, config)
    return config


def _beside(file: StoredFile, companion: Companion) -> StoredFile:
    if file.beside is None:
        raise CheckpointError(f"{file.name} has no {companion.what}: give it with its companions")
    return file.beside(companion)


def _config(component: str, shapes: Shapes) -> dict[str, Any]:
    read = text_config if component == TEXT else vae_config
    return read(shapes, published(component))


def _shapes(file: StoredFile, prefix: str) -> Shapes:
    return Shapes(file.name, {name: each.shape for name, each in file.tensors.items()}, prefix)


def _is_qwen(file: StoredFile) -> bool:
    """True for the text encoder. Other Qwen3 have the same names: their widths differ."""
    prefix = prefix_of(TEXT, file.tensors)
    if prefix is None or prefix_of(DENOISER, file.tensors) is not None:
        return False
    width = file.tensors.get(prefix + "embed_tokens.weight")
    return width is not None and width.shape[-1] not in _OTHER_QWEN


def _is_vae(file: StoredFile) -> bool:
    """True for a VAE of 16 channels; that of FLUX.2 has 32."""
    prefix = prefix_of(VAE, file.tensors)
    entry = file.tensors.get(f"{prefix}decoder.conv_in.weight")
    return entry is not None and len(entry.shape) > 1 and entry.shape[1] == _CHANNELS


TEXT_FILE = Companion(
    TEXT, "text encoder (Qwen3 4B)", ("qwen_3_4b", "qwen3_4b"), ("text_encoders", "clip"), _is_qwen
)
VAE_FILE = Companion(VAE, "VAE of FLUX.1", ("ae", "flux_vae", "flux_ae"), ("vae",), _is_vae)
