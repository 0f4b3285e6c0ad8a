"""Encodes texts to conditioning and images to latents, and decodes latents, by family.

Everything but `encode_tokens` runs without gradients, on the device where the encoder lies; results
come back on the denoiser's device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..families.base.conditioning import Conditioning
from .model import Model


@torch.no_grad()
def encode_prompts(
    model: Model,
    prompts: Sequence[str],
    *,
    batch: int = 32,
    size: tuple[int, int] | None = None,
) -> Conditioning:
    """Encode prompts; the conditioning has one sample for each.

    Args:
        batch: prompts at a time; results agree between batch sizes to rounding.
        size: (height, width) in pixels, which size-conditioned families (SDXL) get as original and
            target size, uncropped; the model's native resolution by default.
    """
    parts = [
        encode_tokens(model, tokenise(model, prompts[start : start + batch]))
        for start in range(0, len(prompts), batch)
    ]
    if not parts:
        raise ValueError("encode_prompts was given no prompts")
    text = Conditioning.cat(parts).to(model.device)
    size = size or (model.resolution, model.resolution)
    sizes = model.texts.of_samples([(size, (0, 0), size)] * len(text), model.device)
    return text.beside(sizes)


def tokenise(model: Model, prompts: Sequence[str]) -> tuple[Tensor, ...]:
    """Tokenise prompts: what `encode_tokens` needs, each tensor with the prompts first."""
    return model.texts.tokenise(model, list(prompts))


def encode_tokens(model: Model, tokens: Sequence[Tensor]) -> Conditioning:
    """Encode tokenised prompts, without what belongs to a sample (such as its size).

    Differentiable where gradients are on.
    """
    return model.texts.encode(model, tokens)


@torch.no_grad()
def encode_images(
    model: Model, images: Tensor, *, sample: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Encode images to the denoiser's latents, [batch, channels, height, width], in float32.

    Args:
        images: [batch, 3, height, width] from -1 to 1; sides are multiples of the VAE's stride.
        sample: draw from the VAE's posterior instead of taking its mean (which the training of
            Stable Diffusion did; the mean makes caches deterministic).
        generator: for `sample`, on the CPU.
    """
    noise = (generator or torch.default_generator) if sample else None
    with _in_float32(model.vae) as vae:
        latents = model.latents.encode(
            vae, images.to(_device(vae), torch.float32), model.latent_space, noise
        )
    return latents.to(model.device)


@torch.no_grad()
def decode_latents(model: Model, latents: Tensor, *, batch: int = 8) -> Tensor:
    """Decode to images, [n, 3, height, width] in float32 from -1 to 1, on the denoiser's device."""
    space = model.latent_space
    with _in_float32(model.vae) as vae:
        parts = latents.to(_device(vae), torch.float32).split(batch)
        images = [model.latents.decode(vae, part, space) for part in parts]
    return torch.cat(images).clamp(-1, 1).to(model.device)


def offload_encoders(model: Model) -> None:
    """Move text encoders and VAE to the CPU; they still work there, only slower."""
    for module in _encoders(model):
        module.to("cpu")


def encoders_on_device(model: Model) -> AbstractContextManager[None]:
    """Put text encoders and VAE on the denoiser's device for a block, then back."""
    return on_device(model, *_encoders(model))


@contextmanager
def on_device(model: Model, *modules: torch.nn.Module) -> Iterator[None]:
    """Put networks on the denoiser's device for a block, then back where they were."""
    homes = [_device(module) for module in modules]
    try:
        for module in modules:
            module.to(model.device)
        yield
    finally:
        for module, home in zip(modules, homes, strict=True):
            module.to(home)


@contextmanager
def _in_float32(vae: Any) -> Iterator[Any]:
    """Keep the VAE in float32 for a block: SDXL's overflows in half precision, and images are
    encoded once. Half to float32 and back is lossless."""
    dtype = next(vae.parameters()).dtype
    if dtype == torch.float32:
        yield vae
        return
    try:
        yield torch.nn.Module.to(vae, torch.float32)  # diffusers' own `to` warns of each cast
    finally:
        torch.nn.Module.to(vae, dtype)


def _encoders(model: Model) -> tuple[torch.nn.Module, ...]:
    return *model.text_encoders, model.vae


def _device(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device
