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
    losses_of,
    measure,
    optimise,
    patch_components,
    pictures,
    start_as_identity,
)
from diffusers import AutoencoderKLFlux2
from dit_shared import CHANNELS, GROUPS, LATENT_CHANNELS, VAE_WIDTHS
from torch import Tensor
from world import art, floats

WHITENING, POSTERIOR_LOGVAR, DECODER_NOISE = 0.5, -7.0, 0.05


def build() -> AutoencoderKLFlux2:
    """Build the network with new weights."""
    vae = AutoencoderKLFlux2(
        block_out_channels=VAE_WIDTHS, layers_per_block=1, norm_num_groups=GROUPS,
        latent_channels=LATENT_CHANNELS, sample_size=art.SIZE,
    )  # fmt: skip
    start_as_identity(vae)
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
    vae = build()
    data, _ = pictures(100)
    components = rotated_components(data)

    def loss_at(share: float) -> Tensor:
        apart = share < PCA_SHARE
        loss, to_components, _ = losses_of(vae, data, components, DECODER_NOISE, apart=apart)
        return loss + (1.0 if apart else 0.1) * to_components

    optimise(list(vae.parameters()), minutes, 2e-3, loss_at, lambda: measure(vae, 102))
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
