"""Models of full size, or tiny ones of the same topology, with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes_checkpoint
import torch
from torch import nn

from resalign.backend.families import Family, find_family
from resalign.backend.model.model import Model


def network(family: Family, component: str, small: bool, seed: int = 0) -> Any:
    """Build a component on the CPU with random weights, float32."""
    if small:
        built = fakes_checkpoint.build_networks(family.name, seed=seed)[component]
        return copy.deepcopy(built)
    with torch.device("meta"):
        built = family.networks.build(component, family.config(component))
    return built.to_empty(device="cpu").eval().requires_grad_(False)


def denoiser_model(name: str, pixels: int, device: str, dtype: torch.dtype, small: bool) -> Model:
    """Build a model of nothing but a denoiser, on the device: its data are random latents."""
    family = find_family(name)
    process = family.process("the published config", family.config("scheduler"))
    if small:
        denoiser = network(family, family.denoiser, small)
        nn.Module.to(denoiser, device, dtype)
    else:
        with torch.device("meta"):
            denoiser = family.networks.build(family.denoiser, family.config(family.denoiser))
        nn.Module.to(denoiser, dtype)
        denoiser.to_empty(device=device).eval().requires_grad_(False)
        fill(denoiser)
    return Model(family, denoiser, (), (), None, process.to(torch.device(device)), pixels)  # type: ignore[arg-type]


def fill(module: nn.Module, seed: int = 0) -> None:
    """Draw all weights on their device; those of norms are 1 and 0, so that nothing overflows."""
    random = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    for tensor in module.parameters():
        if tensor.dim() > 1:
            tensor.data.normal_(0, 0.02, generator=random)
        else:
            tensor.data.zero_()
    for part in module.modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm) and part.weight is not None:
            part.weight.data.fill_(1)


def write_checkpoint(path: Path, name: str, device: str, small: bool) -> Path:
    """Write a single file in fp16, as hosts have it."""
    from safetensors.torch import save_file

    if small:
        return fakes_checkpoint.write_tiny_checkpoint(path, name)
    family = find_family(name)
    networks = {}
    for component in family.components:
        networks[component] = network(family, component, small).half().to(device)
        fill(networks[component])
    tensors = fakes_checkpoint.ldm_tensors(networks, name)
    save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, str(path))
    return path


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(torch.device(device))


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Return the wall time of some work, the device's queue included."""
    import time

    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began
