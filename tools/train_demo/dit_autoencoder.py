"""Stage `vae` of the transformer test-bed: an autoencoder of FLUX.2's shape, 32 channels.

It starts as the other test-bed's does, from the principal components of 8 x 8 patches, here 32
instead of 4, mixed by a fixed rotation. They are divided by the root of their deviation only, so
that coarse ones stay the larger: noise then hides detail first, as in latents of a trained VAE.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from autoencoder import (
    PCA_SHARE,
    _optimise,
    measure,
    patch_components,
    pictures,
    reconstruction_loss,
)
from diffusers import AutoencoderKLFlux2
from dit_shared import CHANNELS, GROUPS, LATENT_CHANNELS, VAE_WIDTHS
from torch import Tensor, nn
from world import art, floats

WHITENING, POSTERIOR_LOGVAR, DECODER_NOISE = 0.5, -7.0, 0.05


def build() -> AutoencoderKLFlux2:
    """Residual branches start at zero, the convolutions around the latents as the identity."""
    vae = AutoencoderKLFlux2(
        block_out_channels=VAE_WIDTHS, layers_per_block=1, norm_num_groups=GROUPS,
        latent_channels=LATENT_CHANNELS, sample_size=art.SIZE,
    )  # fmt: skip
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    # A constant posterior: the network does not learn one
    vae.quant_conv.weight.data[LATENT_CHANNELS:] = 0
    vae.quant_conv.bias.data[LATENT_CHANNELS:] = POSTERIOR_LOGVAR
    return vae.to(memory_format=torch.channels_last)


def rotated_components(images: Tensor) -> Callable[[Tensor], Tensor]:
    """Components of deviation 1 on average over the channels: [n, 32, 8, 8] of images."""
    components = patch_components(images, LATENT_CHANNELS, WHITENING)
    mix = torch.linalg.qr(torch.randn(LATENT_CHANNELS, LATENT_CHANNELS))[0]
    scale = components(floats(images[:500])).square().mean().sqrt()
    return lambda x: torch.einsum("nchw,dc->ndhw", components(x), mix) / scale


def train(minutes: float, folder: Path, seed: int = 0) -> AutoencoderKLFlux2:
    """Train both halves, then take the statistics of the latents; writes `folder`."""
    torch.manual_seed(seed)
    vae, (data, _) = build(), pictures(100)
    components = rotated_components(data)

    def loss_at(share: float) -> Tensor:
        batch = floats(data[torch.randint(len(data), (8,))])
        batch = batch.contiguous(memory_format=torch.channels_last)
        mean, target = vae.encode(batch).latent_dist.mean, components(batch)
        to_components = F.mse_loss(mean, target)
        apart = share < PCA_SHARE
        code = target if apart else mean
        output = vae.decode(code + DECODER_NOISE * torch.randn_like(code)).sample
        loss = reconstruction_loss(output, batch)
        return loss + (1.0 if apart else 0.1) * to_components

    _optimise(list(vae.parameters()), minutes, 2e-3, loss_at, lambda: measure(vae, 102))
    vae.eval()
    with torch.no_grad():
        means = torch.cat([vae.encode(floats(p)).latent_dist.mean for p in data[:3000].split(64)])
        patches = F.pixel_unshuffle(means, 2)
        vae.bn.running_mean.copy_(patches.mean((0, 2, 3)))
        vae.bn.running_var.copy_(patches.var((0, 2, 3)))
    assert patches.shape[1] == CHANNELS
    print("vae", measure(vae, 102, folder.with_suffix(".png")), flush=True)
    vae.save_pretrained(folder)
    return vae
