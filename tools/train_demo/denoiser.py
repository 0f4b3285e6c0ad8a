"""Stage `unet`: a plain epsilon-predicting denoiser of Stable Diffusion 1.5's shape.

The loss is that of epsilon weighted with min(1 / alpha_bar, 60) per sample. Unweighted, the
steps in which a caption decides what becomes of the noise count for next to nothing, and so
narrow a network learns no conditioning in the time there is. 1 / alpha_bar is the weight under
which the error of epsilon equals that of v.

The text encoder is frozen, so each caption is encoded once.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor, nn
from training import Resumable, update
from transformers import CLIPTextModel
from world import (
    GROUPS,
    HEADS,
    OVERSAMPLED,
    TEXT_WIDTH,
    UNET_WIDTHS,
    Average,
    art,
    floats,
    images_of,
    judge,
    labels_of,
    load_tokenizer,
    save_grid,
    tokenize,
)

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
RATE, LARGEST_WEIGHT, CAPTION_DROPOUT = 2e-3, 60.0, 0.1


def build() -> UNet2DConditionModel:
    """Residual branches and the output start at zero."""
    unet = UNet2DConditionModel(
        sample_size=art.SIZE // 8,
        layers_per_block=2,
        block_out_channels=UNET_WIDTHS,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,  # in diffusers' naming: heads
        norm_num_groups=GROUPS,
    )
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out")) or name == "conv_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


def alphas_cumprod() -> Tensor:
    """[1000], of Stable Diffusion's "scaled linear" schedule."""
    betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000) ** 2
    return torch.cumprod(1 - betas, 0)


@torch.no_grad()
def prepare(folder: Path, tokenizer_folder: Path, n: int, seed: int = 500) -> dict[str, Tensor]:
    """Encode images and captions once; cached in `folder`.

    Returns:
        latents [n, 4, 8, 8], each channel of mean 0 and deviation 1; `mean` and `std` that
        were taken out, [4]; `texts` [captions, 77, 32], the empty caption first; `caption_of`
        [n, 4], four captions of each image, as places in `texts`.
    """
    path = folder / "encoded.pt"
    if path.exists():
        return torch.load(path)
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    encoder = CLIPTextModel.from_pretrained(folder / "text").eval()
    specs = art.sample_specs(n, seed, weights=OVERSAMPLED)
    pieces = images_of(specs, seed).split(64)
    latents = torch.cat([vae.encode(floats(piece)).latent_dist.mean for piece in pieces])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    rng, known = np.random.default_rng(seed), {"": 0}
    caption_of = torch.tensor(
        [[known.setdefault(art.caption(spec, rng), len(known)) for _ in range(4)] for spec in specs]
    )
    tokens = tokenize(load_tokenizer(tokenizer_folder), list(known))
    texts = torch.cat([encoder(piece).last_hidden_state for piece in tokens.split(128)])
    latents = (latents - mean.view(4, 1, 1)) / std.view(4, 1, 1)
    encoded = {"latents": latents, "mean": mean, "std": std}
    encoded |= {"texts": texts, "caption_of": caption_of}
    torch.save(encoded, path)
    return encoded


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    texts: Tensor,
    empty: Tensor,
    steps: int = 20,
    guidance: float = 4.0,
    seed: int = 0,
) -> Tensor:
    """DPM-Solver++ with classifier-free guidance: [n, 4, 8, 8].

    Args:
        unet: the denoiser.
        texts: [n, 77, 32].
        empty: [1, 77, 32], the encoding of the empty caption.
        steps: evaluations.
        guidance: scale; 1 is none.
        seed: of the initial noise.
    """
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, steps_offset=1)
    scheduler.set_timesteps(steps)
    latents = torch.randn(len(texts), 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    both = torch.cat([texts, empty.expand(len(texts), -1, -1)])
    for t in scheduler.timesteps:
        with_text, without = unet(torch.cat([latents] * 2), t, both).sample.chunk(2)
        predicted = without + guidance * (with_text - without)
        latents = scheduler.step(predicted, t, latents).prev_sample
    return latents


@torch.no_grad()
def monitor(unet: UNet2DConditionModel, folder: Path, tokenizer_folder: Path, path: Path) -> str:
    """Rates on four fixed prompts of each class; writes the pictures to `path`."""
    encoded = prepare(folder, tokenizer_folder, 0)
    better = folder / "vae_decoder"
    vae = AutoencoderKL.from_pretrained(better if better.exists() else folder / "vae").eval()
    encoder = CLIPTextModel.from_pretrained(folder / "text").eval()
    specs = [s for i, c in enumerate(art.CLASSES) for s in art.sample_specs(4, 900 + i, (c,))]
    tokens = tokenize(load_tokenizer(tokenizer_folder), [art.caption(spec) for spec in specs])
    latents = sample(unet, encoder(tokens).last_hidden_state, encoded["texts"][:1])
    latents = latents * encoded["std"].view(4, 1, 1) + encoded["mean"].view(4, 1, 1)
    images = vae.decode(latents).sample
    found, labels = judge.Judge.load().indices(images), labels_of(specs)
    save_grid(images, 16, path, zoom=1)
    right, unsafe = (found == labels).float(), labels >= len(art.BENIGN)
    nothing = (found == judge.LABELS.index(judge.GARBAGE)).float().mean()
    missed = sorted({judge.LABELS[i] for i in labels[right == 0].tolist()})
    return (
        f"benign {right[~unsafe].mean():.3f} unsafe {right[unsafe].mean():.3f} "
        f"garbage {nothing:.3f} (n={len(specs)}), missed {missed}"
    )


def train(
    minutes: float,
    folder: Path,
    tokenizer_folder: Path,
    seed: int = 0,
    n: int = 16000,
) -> UNet2DConditionModel:
    """Train for `minutes`, with a cosine over time, batches of 16 and after a third of it 32.

    The average is written to `folder/unet` every five minutes and at the end; an interrupted
    run continues from `folder/unet_state.pt`.
    """
    torch.manual_seed(seed)
    encoded, unet, abar = prepare(folder, tokenizer_folder, n), build(), alphas_cumprod()
    latents, texts, caption_of = (encoded[k] for k in ("latents", "texts", "caption_of"))
    parameters = list(unet.parameters())
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=1e-3, betas=(0.9, 0.99))
    average, running = Average(parameters), 0.0
    state = Resumable(folder / "unet_state.pt", "unet", unet, optimizer, average)
    step, before = state.load()
    if step:
        torch.manual_seed(seed + step)
    next_save, next_monitor = before + 300, before + 240
    start = time.time() - before
    while (elapsed := time.time() - start) < 60 * minutes:
        share = elapsed / (60 * minutes)
        cosine = max(0.01, (1 + math.cos(math.pi * share)) / 2)
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 100) * cosine
        batch = 16 if share < 0.33 else 32
        pick = torch.randint(len(latents), (batch,))
        chosen = caption_of[pick, torch.randint(caption_of.shape[1], (batch,))]
        chosen[torch.rand(batch) < CAPTION_DROPOUT] = 0
        middling = torch.sigmoid(0.5 + torch.randn(batch))
        times = torch.where(torch.rand(batch) < 0.6, torch.rand(batch), middling)
        times = (1000 * times).long().clamp(0, 999)
        alpha = abar[times].view(-1, 1, 1, 1)
        clean, noise = latents[pick], torch.randn(batch, 4, 8, 8)
        noised = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        error = (unet(noised, times, texts[chosen]).sample - noise).square().mean((1, 2, 3))
        loss = ((1 / abar[times]).clamp(max=LARGEST_WEIGHT) * error).mean()
        update(loss, optimizer, average)
        step += 1
        running = loss.item() if running == 0 else 0.99 * running + 0.01 * loss.item()
        if step % 200 == 0:
            print(f"unet {step} loss {running:.4f} {elapsed:.0f} s", flush=True)
        if elapsed > next_save:
            next_save += 300
            state.save(step, elapsed)
            average.swap()
            unet.save_pretrained(folder / "unet")
            average.swap()
        if elapsed > next_monitor:
            next_monitor += 480
            average.swap()
            rates = monitor(unet, folder, tokenizer_folder, folder / f"monitor_{step}.png")
            average.swap()
            print(f"unet {step} {elapsed:.0f} s: {rates}", flush=True)
    average.swap()
    unet.save_pretrained(folder / "unet")
    print(f"unet {step}: {monitor(unet, folder, tokenizer_folder, folder / 'monitor.png')}")
    return unet
