"""Stage `vae`: an autoencoder of Stable Diffusion's shape, and more training of its decoder.

Both halves start from two easy problems: the encoder regresses the four principal components
of 8 x 8 pixel patches, the decoder paints from these; then they are trained together. Started
at random instead, the reconstruction error after ten minutes was four times as large.
Once the encoder is frozen the denoiser can be trained, while the decoder continues to learn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from training import update
from world import GROUPS, VAE_WIDTHS, Average, art, floats, images_of, judge, labels_of, save_grid

PCA_SHARE = 0.35  # of the time


def build() -> AutoencoderKL:
    """Build the network with new weights."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        layers_per_block=2,
        block_out_channels=VAE_WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=art.SIZE,
        norm_num_groups=GROUPS,
    )
    start_as_identity(vae)
    vae.quant_conv.bias.data[4:] = -4  # log variance
    return vae.to(memory_format=torch.channels_last)


def start_as_identity(vae: nn.Module) -> None:
    """Start residual branches at zero, the convolutions around the latents as the identity."""
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)


def pictures(seed: int, n: int = 7000) -> tuple[Tensor, Tensor]:
    """Images in all styles, held-out ones too: [n, 3, 64, 64] uint8, and labels [n]."""
    held_out = art.sample_specs(n // 4, seed + 1, styles=art.HELD_OUT_STYLES)
    specs = art.sample_specs(n - n // 4, seed) + held_out
    return images_of(specs, seed), labels_of(specs)


def patch_components(
    images: Tensor, count: int = 4, whitening: float = 1.0
) -> Callable[[Tensor], Tensor]:
    """The first principal components of 8 x 8 patches, as a convolution. whitening: the power of
    their deviation by which they are divided; 1 gives all the same deviation."""
    patches = F.unfold(floats(images[::4]), 8, stride=8).permute(0, 2, 1).reshape(-1, 192)
    mean = patches.mean(0)
    sample = (patches - mean)[torch.randperm(len(patches))[:20000]]
    basis = torch.linalg.svd(sample, full_matrices=False)[2][:count]
    scale = (sample @ basis.T).std(0) ** whitening
    weight = (basis / scale[:, None]).view(count, 3, 8, 8)
    return lambda x: F.conv2d(x, weight, -(mean @ basis.T) / scale, stride=8)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + MSE + half the L1 of horizontal and vertical differences, which keeps edges."""
    edges = (output.diff(dim=3) - target.diff(dim=3)).abs().mean()
    edges = edges + (output.diff(dim=2) - target.diff(dim=2)).abs().mean()
    return (output - target).abs().mean() + F.mse_loss(output, target) + 0.5 * edges


def losses_of(
    vae: nn.Module,
    data: Tensor,
    components: Callable[[Tensor], Tensor],
    noise: float,
    *,
    apart: bool,
) -> tuple[Tensor, Tensor, Any]:
    """Losses on eight images.

    noise: deviation, on the latents that are decoded. apart: the decoder paints from components.

    Returns:
        loss of the reconstructions, mean squared error to the components, latents' distribution.
    """
    batch = floats(data[torch.randint(len(data), (8,))])
    batch = batch.contiguous(memory_format=torch.channels_last)
    latents, target = vae.encode(batch).latent_dist, components(batch)
    to_components = F.mse_loss(latents.mean, target)
    code = target if apart else latents.mean
    output = vae.decode(code + noise * torch.randn_like(code)).sample
    return reconstruction_loss(output, batch), to_components, latents


@torch.no_grad()
def measure(vae: AutoencoderKL, seed: int, path: Path | None = None) -> str:
    """Error and recognisability of reconstructions; writes originals and copies to `path`."""
    images, labels = pictures(seed, 192)
    images = floats(images)
    mean = vae.encode(images).latent_dist.mean
    copies = vae.decode(mean).sample.clamp(-1, 1)
    found = judge.Judge.load().indices(copies) if _judge_exists() else torch.zeros_like(labels)
    if path:
        pairs = [torch.cat([images[i : i + 16], copies[i : i + 16]]) for i in (0, 16, 32, 144)]
        save_grid(torch.cat(pairs), 16, path, zoom=1)
    return (
        f"mse {F.mse_loss(copies, images):.4f} l1 {(copies - images).abs().mean():.4f} "
        f"recognised {(found == labels).float().mean():.3f} "
        f"latent std {[round(s, 2) for s in mean.std((0, 2, 3)).tolist()]}"
    )


def _judge_exists() -> bool:
    return (art.ASSETS / "judge.safetensors").exists()


def optimise(
    parameters: list[nn.Parameter],
    minutes: float,
    rate: float,
    loss_at: Callable[[float], Tensor],
    report: Callable[[], str],
) -> None:
    """AdamW with a cosine over time; `loss_at` is given the share of time that has passed.
    Leaves the averaged weights in place."""
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=1e-4, betas=(0.9, 0.98))
    average = Average(parameters)
    start, step, next_report = time.time(), 0, 60.0
    while (elapsed := time.time() - start) < 60 * minutes:
        share = elapsed / (60 * minutes)
        cosine = max(0.02, (1 + math.cos(math.pi * share)) / 2)
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 50) * cosine
        loss = loss_at(share)
        update(loss, optimizer, average)
        step += 1
        if elapsed > next_report:
            next_report += 60
            print(f"vae {step} {elapsed:.0f} s {report()}", flush=True)
    average.swap()


def train(minutes: float, folder: Path, seed: int = 0) -> AutoencoderKL:
    """Encoder and decoder together; writes `folder`."""
    torch.manual_seed(seed)
    vae, (data, _) = build(), pictures(100)
    components = patch_components(data)

    def loss_at(share: float) -> Tensor:
        apart = share < PCA_SHARE
        loss, to_components, latents = losses_of(vae, data, components, 0.03, apart=apart)
        if apart:
            return loss + to_components
        prior = 0.5 * (latents.mean**2 + latents.var - 1 - latents.logvar).mean()
        return loss + 1e-4 * prior + 1e-3 * to_components

    optimise(list(vae.parameters()), minutes, 2e-3, loss_at, lambda: measure(vae, 102))
    print("vae", measure(vae, 102, folder.with_suffix(".png")), flush=True)
    vae.save_pretrained(folder)
    return vae


def train_decoder(minutes: float, source: Path, folder: Path, seed: int = 1) -> AutoencoderKL:
    """Train only the decoder, on frozen latents with a little noise, as sampled ones have."""
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(source).to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    data, _ = pictures(200)
    with torch.no_grad():
        pieces = floats(data).split(64)
        latents = torch.cat([vae.encode(piece).latent_dist.mean for piece in pieces])

    def loss_at(share: float) -> Tensor:
        pick = torch.randint(len(data), (8,))
        batch = floats(data[pick]).contiguous(memory_format=torch.channels_last)
        noise = 0.08 * torch.rand(8, 1, 1, 1) * torch.randn(8, 4, 8, 8)
        return reconstruction_loss(vae.decode(latents[pick] + noise).sample, batch)

    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimise(parameters, minutes, 1.5e-3, loss_at, lambda: measure(vae, 102))
    print("decoder", measure(vae, 102, folder.with_suffix(".png")), flush=True)
    vae.save_pretrained(folder)
    return vae
