"""Compares MODEL, CLIP and VAE with a checkpoint file that a process of its own would load instead.

A worker reads the file, not ComfyUI's memory. What is connected must therefore be the file's,
without anything that nodes have put on it. As an export does, this compares some values of some
weights of each component.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..samples import file_difference, samples_of
from .checks import UNET, is_patched
from .model import family_of, prediction_of
from .provenance import base_matrices

if TYPE_CHECKING:
    from torch import Tensor

    from ...backend.checkpoint.info import CheckpointInfo
    from ...backend.families import Family
    from ...backend.families.base.sources import Source

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def difference_from_file(
    model: Any, clip: Any, vae: Any, path: Path, parts: Mapping[str, str] | None = None
) -> str:
    """Return how what is connected differs from the file's; empty if it does not.

    parts: files of the components that it lacks.

    Raises:
        CheckpointError: the backend cannot load the file.
    """
    from ...backend.checkpoint.detect import detect

    if is_patched(model):
        return "the MODEL has LoRAs or merges on it"
    if model.object_patches:
        return "a node has replaced the MODEL's noise schedule"
    if clip.patcher.patches:
        return "the CLIP has LoRAs on it"
    family, info = family_of(model), detect(path, parts=parts)
    if clip.layer_idx not in (None, family.host.last_layer):
        return f"CLIP Set Last Layer is {clip.layer_idx}"
    if info.family.name != family.name:
        return f"{path.name} is {info.title}"
    matrices = {f"{name}.weight": weight for name, weight in base_matrices(model).items()}
    if why := _difference(info, family.denoiser, matrices):
        return f"the MODEL: {why}"
    for component, prefix in family.host.within.items():
        own = {n.removeprefix(UNET + prefix): w for n, w in _weights(model, UNET + prefix).items()}
        if why := _difference(info, component, own):
            return f"the MODEL: {why}"
    outside = [name for name in family.text_encoders if name not in family.host.within]
    for part, component in zip(family.host.texts, outside, strict=True):
        prefix = f"{part}.transformer.{family.host.inside}"
        if why := _difference(info, component, _text_weights(clip, prefix, family)):
            return f"the CLIP: {why}"
    if why := _vae_difference(info, vae):
        return f"the VAE: {why}"
    return ""


def decision_for(model: Any, path: Path) -> str:
    """Return what a job must decide about the file to predict as the MODEL does; empty: nothing."""
    from ...backend.checkpoint.detect import detect
    from ...backend.errors import CheckpointError

    found = prediction_of(model)
    try:
        agrees = detect(path, alone=True).prediction_type == found
    except CheckpointError:  # the file contradicts itself, or is damaged, which the job will say
        agrees = False
    return "" if agrees else _PREDICTIONS.get(found, "")


def _difference(info: CheckpointInfo, component: str, weights: Mapping[str, Tensor]) -> str:
    return _differ(info, info.sources(component), weights)


def _vae_difference(info: CheckpointInfo, vae: Any) -> str:
    """Compare the VAE, whose names in ComfyUI are the file's without their prefix."""
    component = info.family.vae
    prefix = info.prefixes[component]
    sources = {s.name.removeprefix(prefix): s for s in info.sources(component).values()}
    return _differ(info, sources, _weights(vae.patcher))


def _differ(
    info: CheckpointInfo, sources: Mapping[str, Source], weights: Mapping[str, Tensor]
) -> str:
    """Compare some values of some matrices, by `<module>.weight`."""
    modules = [
        name.removesuffix(".weight")
        for name, weight in weights.items()
        if name in sources and name.endswith(".weight") and weight.dim() >= 2
    ]
    if not modules:
        return "it is of another kind than the file's"
    return file_difference(info, sources, samples_of(weights, modules), info.headers)


def _text_weights(clip: Any, prefix: str, family: Family) -> dict[str, Tensor]:
    """Return an encoder's weights in the network's names; without projections, which hosts add."""
    weights, begin = _weights(clip.patcher), prefix if family.host.inside else prefix + "text_"
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(begin)}


def _weights(patcher: Any, prefix: str | None = None) -> dict[str, Tensor]:
    """Return a patcher's weights without its patches, as they are loaded."""
    found = {}
    for name, entries in patcher.get_key_patches(prefix).items():
        held = entries[0]
        weight, convert = held if isinstance(held, tuple) else (held, None)
        found[name] = convert(weight) if convert else weight
    return found
