"""Builds networks from tensors that a host holds in memory, in the names of single files.

The tensors are strictly those of the network: shapes and layers are read off them as they are off
a file, so the same layouts are refused. `who` names the model in errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..families import Family
from ..families.base.shapes import Shapes, check_same_names, reading_shapes
from ..families.base.sources import Source, read_part
from ..families.registry import family_of_denoiser
from .load import network_from


def denoiser_family(who: str, tensors: Mapping[str, Tensor]) -> Family:
    """Recognise the family of a denoiser by its tensors, named without prefix."""
    return family_of_denoiser(who, _shapes(tensors))


def denoiser_config(who: str, tensors: Mapping[str, Tensor], family: Family) -> dict[str, Any]:
    """Read the denoiser's config, in diffusers' form, off its tensors."""
    with reading_shapes(who):
        return family.recognition.describe_denoiser(Shapes(who, _shapes(tensors)))


def denoiser_places(family: Family, config: Mapping[str, Any]) -> dict[str, Source]:
    """Map each tensor in diffusers to its place in the host's denoiser."""
    return family.tensors.denoiser_sources(config)


def denoiser_modules(family: Family, config: Mapping[str, Any]) -> dict[str, str]:
    """Map each module in diffusers to the host's module that holds its weight."""
    return {
        name.removesuffix(".weight"): source.name.removesuffix(".weight")
        for name, source in denoiser_places(family, config).items()
        if name.endswith(".weight")
    }


def denoiser_from_tensors(
    who: str,
    tensors: Mapping[str, Tensor],
    family: Family,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Build and fill a denoiser that shares no memory with `tensors`, unless they already fit.

    Raises:
        CheckpointError: a layout that cannot be mapped, missing or surplus tensors.
    """
    config = denoiser_config(who, tensors, family)
    tensors = {n: t for n, t in tensors.items() if not n.startswith(inner_prefixes(family))}
    sources = family.tensors.denoiser_sources(config)
    check_same_names(who, {source.name for source in sources.values()}, set(tensors))
    network = network_from(who, family, family.denoiser, config)
    state = {
        name: read_part(tensors[source.name], source).to(device, dtype)
        for name, source in sources.items()
    }
    network.load_state_dict(state, strict=True, assign=True)
    family.networks.fill_buffers(network, torch.device(device))
    return network.eval().requires_grad_(False)


def inner_prefixes(family: Family) -> tuple[str, ...]:
    """Return what the names of tensors of other components begin with in the host's denoiser."""
    return tuple(family.host.within.values())


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
