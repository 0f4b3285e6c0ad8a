"""Samples latents and images from prompts, without a pipeline object.

DPM-Solver++ of second order (Lu et al., arXiv:2211.01095, diffusers' multistep scheduler) with
classifier-free guidance (Ho & Salimans, arXiv:2207.12598):

    prediction = unconditional + guidance · (conditional − unconditional)

Each image has its own seed and its own generator on the CPU, so it depends neither on the batch
it is made in nor on the device its noise is drawn for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import DataError
from ..families.base.conditioning import Conditioning
from ..progress import Progress, ProgressCallback, silent
from .encode import decode_latents, encode_prompts, encoders_on_device, on_device
from .model import Model


@torch.no_grad()
def generate_latents(
    model: Model,
    prompts: Sequence[str] | Conditioning,
    *,
    seeds: Sequence[int],
    steps: int = 20,
    guidance: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    batch: int = 8,
    negative: str | Conditioning | None = None,
    on_progress: ProgressCallback = silent,
) -> Tensor:
    """Sample one latent per seed, [len(seeds), channels, height, width] in float32.

    Args:
        prompts: one per seed, or a single one for all of them; text or encoded.
        seeds: one generator per image.
        guidance: strength w of classifier-free guidance; 1 or less skips the second pass.
        height, width: in pixels, multiples of the VAE's stride; native by default.
        batch: images at a time; no image depends on it, to rounding.
        negative: what to steer away from; the empty prompt by default.
    """
    if not seeds:
        raise ValueError("generate_latents was given no seeds")
    height, width = height or model.resolution, width or model.resolution
    size, shape = (height, width), model.latent_space.shape(height, width)
    with on_device(model, *model.text_encoders):
        conditioning, unconditional = _conditioning(model, prompts, len(seeds), size), None
        if guidance > 1 and not isinstance(negative, Conditioning):
            negative = encode_prompts(model, [negative or ""], size=size)
    if isinstance(negative, Conditioning) and guidance > 1:
        unconditional = negative.to(model.device, model.dtype)
    done = []
    with _evaluating(model.denoiser):
        for start in range(0, len(seeds), batch):
            chunk = slice(start, start + batch)
            noise = torch.stack([_noise(shape, seed) for seed in seeds[chunk]]).to(model.device)
            drawn = Progress(
                stage="sampling", step=start, total=len(seeds), micro_total=steps,
                at_once=len(noise),
            )  # fmt: skip
            done.append(
                _solve(
                    model, noise, conditioning[chunk], unconditional, guidance, steps,
                    lambda step, drawn=drawn: on_progress(replace(drawn, micro_step=step)),
                )
            )  # fmt: skip
    on_progress(Progress(stage="sampling", step=len(seeds), total=len(seeds)))
    return torch.cat(done)


def generate_images(
    model: Model,
    prompts: Sequence[str] | Conditioning,
    *,
    seeds: Sequence[int],
    steps: int = 20,
    guidance: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    batch: int = 8,
    negative: str | Conditioning | None = None,
    on_progress: ProgressCallback = silent,
) -> Tensor:
    """Sample and decode images: [len(seeds), 3, height, width] in float32 from -1 to 1.

    Text encoders and VAE work on the denoiser's device, and go back to where they were.
    """
    with encoders_on_device(model):
        if not isinstance(prompts, Conditioning):
            size = height or model.resolution, width or model.resolution
            prompts = _conditioning(model, prompts, len(seeds), size)
    latents = generate_latents(
        model, prompts, seeds=seeds, steps=steps, guidance=guidance, height=height, width=width,
        batch=batch, negative=negative, on_progress=on_progress,
    )  # fmt: skip
    with encoders_on_device(model):
        return decode_latents(model, latents, batch=batch)


def _solve(model, noise, conditioning, unconditional, guidance, steps, on_step) -> Tensor:
    """Sample one batch from noise (float32) to clean latents."""
    scheduler = model.process.sampler(steps, positions=noise.shape[-2] * noise.shape[-1])
    count = len(noise)
    if unconditional is not None:
        conditioning = Conditioning.cat([unconditional.expand(count), conditioning])
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for step, timestep in enumerate(scheduler.timesteps, start=1):
        doubled = latents if unconditional is None else torch.cat([latents, latents])
        times = timestep.to(model.device).expand(len(doubled))
        prediction = model.denoise(doubled.to(model.dtype), times, conditioning).float()
        if unconditional is not None:
            without, with_prompt = prediction.chunk(2)
            prediction = without + guidance * (with_prompt - without)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        on_step(step)
    return latents


def _conditioning(
    model: Model, prompts: Sequence[str] | Conditioning, count: int, size: tuple[int, int]
) -> Conditioning:
    if not isinstance(prompts, Conditioning):
        if isinstance(prompts, str):
            prompts = [prompts]
        distinct = list(dict.fromkeys(prompts))
        where = torch.tensor([distinct.index(prompt) for prompt in prompts], device=model.device)
        prompts = encode_prompts(model, distinct, size=size)[where]
    if len(prompts) == 1:
        prompts = prompts.expand(count)
    if len(prompts) != count:
        raise DataError(f"{len(prompts)} prompts for {count} seeds: give one seed per image")
    return prompts.to(model.device, model.dtype)


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Set evaluation mode for a block, then restore the previous mode."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
