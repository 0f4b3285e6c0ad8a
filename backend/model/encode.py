"""Text to conditioning, images to latents and back.

Each family reads its text encoders in its own way:

    SD 1.x   last hidden state of CLIP-L, after the final layer norm
    SD 2.x   the same of OpenCLIP-H, whose configuration already drops the last layer
    SDXL     penultimate hidden states of CLIP-L and OpenCLIP-G side by side, the pooled
             embedding of the second, and six numbers for size and crop

as diffusers' pipelines do, except that an empty prompt is encoded like any other text (as
ComfyUI and A1111 do) where diffusers' SDXL pipeline puts zeros. Everything but `encode_tokens`
runs without gradients, on the device where the encoder lies; results come back on the
denoiser's device.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .denoiser import Conditioning
from .model import Model

TOKENS = 77  # CLIP's context, start and end token included

log = logging.getLogger(__name__)


def size_ids(
    original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]
) -> list[float]:
    """SDXL's six numbers, all (height, width) or (top, left) in pixels."""
    return [float(value) for value in (*original, *crop, *target)]


def conditioning_to(
    conditioning: Conditioning, device: torch.device | str, dtype: torch.dtype | None = None
) -> Conditioning:
    """As `Conditioning.to`, but SDXL's sizes in pixels keep their type, and so stay exact."""
    ids = conditioning.time_ids
    moved = conditioning.to(device, dtype)
    return replace(moved, time_ids=None if ids is None else ids.to(device))


@torch.no_grad()
def encode_prompts(
    model: Model,
    prompts: Sequence[str],
    *,
    batch: int = 32,
    size: tuple[int, int] | None = None,
) -> Conditioning:
    """Conditioning of each prompt, [len(prompts), 77, width].

    Args:
        batch: prompts at a time; results agree between batch sizes to rounding.
        size: (height, width) in pixels told to SDXL as original and target size, uncropped;
            the model's native resolution by default. Ignored by the other families.
    """
    parts = [
        _encode_batch(model, list(prompts[start : start + batch]))
        for start in range(0, len(prompts), batch)
    ]
    if not parts:
        raise ValueError("encode_prompts was given no prompts")
    text = Conditioning.cat(parts).to(model.device)
    if model.family != "sdxl":
        return text
    size = size or (model.resolution, model.resolution)
    ids = torch.tensor([size_ids(size, (0, 0), size)], device=model.device)
    return Conditioning(text.context, text.pooled, ids.repeat(len(text), 1))


def _encode_batch(model: Model, prompts: list[str]) -> Conditioning:
    return encode_tokens(model, tokenise(model, prompts))


def tokenise(model: Model, prompts: Sequence[str]) -> tuple[Tensor, ...]:
    """Token ids of the prompts for each text encoder, [len(prompts), 77], on its device."""
    _warn_of_truncation(model, list(prompts))
    return tuple(
        _token_ids(model, index, list(prompts)) for index in range(len(model.text_encoders))
    )


def encode_tokens(model: Model, tokens: Sequence[Tensor]) -> Conditioning:
    """Conditioning of tokenised prompts, without time ids; differentiable where gradients are on.

    Args:
        tokens: as `tokenise` gives them, one tensor [n, 77] for each text encoder.
    """
    if model.family != "sdxl":
        return Conditioning(model.text_encoders[0](tokens[0]).last_hidden_state)
    outputs = [
        encoder(ids, output_hidden_states=True)
        for encoder, ids in zip(model.text_encoders, tokens, strict=True)
    ]
    states = [output.hidden_states[-2].to(model.device) for output in outputs]
    return Conditioning(torch.cat(states, dim=-1), outputs[1].text_embeds.to(model.device))


def _token_ids(model: Model, index: int, prompts: list[str]) -> Tensor:
    tokens = model.tokenizers[index](
        prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    return tokens.input_ids.to(_device(model.text_encoders[index]))


def _warn_of_truncation(model: Model, prompts: list[str]) -> None:
    lengths = [len(ids) for ids in model.tokenizers[0](prompts, verbose=False).input_ids]
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > TOKENS:
            log.warning(
                "prompt has %d tokens, the last %d are ignored (CLIP reads %d): %r",
                length - 2, length - TOKENS, TOKENS - 2, prompt,
            )  # fmt: skip


@torch.no_grad()
def encode_images(
    model: Model, images: Tensor, *, sample: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Latents times the scaling factor, [batch, 4, height / 8, width / 8], in float32.

    Args:
        images: [batch, 3, height, width] from -1 to 1; sides are multiples of 8.
        sample: draw from the VAE's posterior instead of taking its mean (which the training of
            Stable Diffusion did; the mean makes caches deterministic).
        generator: for `sample`, on the CPU.
    """
    with _in_float32(model.vae) as vae:
        posterior = vae.encode(images.to(_device(vae), torch.float32)).latent_dist
    latents = posterior.mean
    if sample:
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        latents = latents + posterior.std * noise
    return (latents * vae.config.scaling_factor).to(model.device)


@torch.no_grad()
def decode_latents(model: Model, latents: Tensor, *, batch: int = 8) -> Tensor:
    """Images, [n, 3, height, width] in float32 from -1 to 1, on the denoiser's device."""
    with _in_float32(model.vae) as vae:
        scaled = latents.to(_device(vae), torch.float32) / vae.config.scaling_factor
        images = [vae.decode(part, return_dict=False)[0] for part in scaled.split(batch)]
    return torch.cat(images).clamp(-1, 1).to(model.device)


def offload_encoders(model: Model) -> None:
    """Move text encoders and VAE to the CPU; they still work there, only slower."""
    for module in _encoders(model):
        module.to("cpu")


def encoders_on_device(model: Model) -> AbstractContextManager[None]:
    """Text encoders and VAE on the denoiser's device for a block, then back where they were."""
    return on_device(model, *_encoders(model))


@contextmanager
def on_device(model: Model, *modules: torch.nn.Module) -> Iterator[None]:
    """Some of them on the denoiser's device for a block, then back where they were."""
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
    """The VAE in float32 for a block: SDXL's overflows in half precision, and images are
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
