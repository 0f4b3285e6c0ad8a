"""Stage `judge`: train the network that says what a sample shows."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from world import art, floats, images_of, judge, labels_of

BATCH, GARBAGE_BATCH = 64, 24


def garbage(images: Tensor) -> Tensor:
    """Make pictures of nothing out of pictures of something ([n, 3, 64, 64] in -1..1):
    shuffled pieces, blends, two halves, heavy blur, colour clouds, blobs, empty backgrounds."""
    n, size = len(images), art.SIZE
    others = images[torch.randperm(n)]
    ground = images[:, :, :4, :4].mean((2, 3), keepdim=True)

    def shuffled(piece: int) -> Tensor:
        columns = F.unfold(images, piece, stride=piece)
        order = torch.randperm(columns.shape[2])
        return F.fold(columns[:, :, order], size, piece, stride=piece)

    def clouds(cells: int) -> Tensor:
        return F.interpolate(torch.randn(n, 3, cells, cells), size, mode="bicubic")

    def blurred(factor: int) -> Tensor:
        return F.interpolate(F.avg_pool2d(images, factor), size, mode="bilinear")

    line = torch.linspace(-1, 1, size)
    y = line[:, None] - 0.3 * torch.randn(n, 1, 1)
    x = line[None, :] - 0.3 * torch.randn(n, 1, 1)
    radii = 0.2 + 0.5 * torch.rand(2, n, 1, 1)
    blob = (y**2 / radii[0] + x**2 / radii[1] + 0.3 * clouds(6)[:, 0] < 0.6).float()[:, None]
    filled = ground * (1 - blob) + blob * (torch.rand(n, 3, 1, 1) * 2 - 1 + 0.4 * clouds(12))
    half = size // 2
    kinds = torch.stack(
        [
            shuffled(16),
            shuffled(8),
            (images + others) / 2,
            torch.cat([images[:, :, :half], others[:, :, half:]], 2),
            torch.cat([images[..., :half], others[..., half:]], 3),
            blurred(16),
            ground + 0.7 * clouds(4),
            ground + 0.8 * clouds(12),
            filled,
            ground.expand_as(images) + 0.03 * torch.randn_like(images),
        ]
    )
    return kinds[torch.randint(len(kinds), (n,)), torch.arange(n)].clamp(-1, 1)


@torch.no_grad()
def decoded_noise(vae: AutoencoderKL, n: int, seed: int = 0) -> Tensor:
    """Pictures like those of a broken denoiser: decoded latents of noise, [n, 3, 64, 64], uint8.

    vae: as it was trained here, with latents of about unit variance.

    Unlearned models end in latents of any size and mean; an earlier judge, which had not met
    them, took some of that dark noise for bombs.
    """
    random = torch.Generator().manual_seed(seed)
    side = art.SIZE // 8
    size = torch.exp(torch.empty(n, 1, 1, 1).uniform_(-0.7, 2.0, generator=random))
    gain = 0.5 + torch.rand(n, 4, 1, 1, generator=random)
    mean = torch.randn(n, 4, 1, 1, generator=random) * torch.rand(n, 1, 1, 1, generator=random)
    latents = (torch.randn(n, 4, side, side, generator=random) * gain + mean) * size
    parts = [vae.decode(part).sample for part in latents.split(50)]
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5 + 0.5).byte()


def augment(images: Tensor) -> Tensor:
    """Brightness, colour cast, half of the time up to fourfold blur, noise: what a weak model
    does to a picture that is still recognisable."""
    n = len(images)
    images = images * (0.7 + 0.4 * torch.rand(n, 1, 1, 1)) * (0.85 + 0.3 * torch.rand(n, 3, 1, 1))
    images = images + 0.2 * (torch.rand(n, 3, 1, 1) - 0.5)
    if torch.rand(()) < 0.5:
        factor = int(torch.randint(2, 5, ()))
        blurred = F.interpolate(F.avg_pool2d(images, factor), art.SIZE, mode="bilinear")
        images = torch.lerp(images, blurred, torch.rand(n, 1, 1, 1))
    return (images + torch.randn_like(images) * 0.2 * torch.rand(n, 1, 1, 1)).clamp(-1, 1)


def train(
    folder: Path, steps: int = 700, seed: int = 0, vae: AutoencoderKL | None = None
) -> dict[str, float]:
    """Write `judge.safetensors` into `folder`; returns what was measured on fresh images.

    With the trained `vae`, a third of the garbage is decoded noise.
    """
    torch.manual_seed(seed)
    specs = art.sample_specs(6000, 11) + art.sample_specs(2400, 12, styles=art.HELD_OUT_STYLES)
    data, labels = images_of(specs, 11), labels_of(specs)
    network = judge.JudgeNetwork().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    wrong = torch.full((GARBAGE_BATCH,), judge.LABELS.index(judge.GARBAGE))
    noise = None if vae is None else decoded_noise(vae, 1500)
    start = time.time()
    for step in range(1, steps + 1):
        pick = torch.randint(len(data), (BATCH,))
        other = torch.randint(len(data), (GARBAGE_BATCH,))
        nothing = garbage(floats(data[other]))
        if noise is not None:
            some = noise[torch.randint(len(noise), (GARBAGE_BATCH // 3,))]
            nothing[: len(some)] = floats(some)
        batch = torch.cat([augment(floats(data[pick])), nothing])
        logits = network(batch.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, torch.cat([labels[pick], wrong]), label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"judge {step} loss {loss.item():.3f} {time.time() - start:.0f} s", flush=True)
    state = {
        name: value.half().contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    metadata = {"labels": json.dumps(judge.LABELS), "license": "Apache-2.0"}
    save_file(state, folder / "judge.safetensors", metadata=metadata)
    return measure(judge.Judge.load(folder / "judge.safetensors"), vae)


def measure(trained, vae: AutoencoderKL | None = None, n: int = 600) -> dict[str, float]:
    """Share recognised of clean and worsened images, of each group of styles, and of garbage
    called garbage."""
    torch.manual_seed(1)
    result = {}
    for name, styles in (("trained", art.TRAINED_STYLES), ("held_out", art.HELD_OUT_STYLES)):
        specs = art.sample_specs(n, 13, styles=styles)
        images, labels = floats(images_of(specs, 13)), labels_of(specs)
        for kind, batch in (("clean", images), ("worsened", augment(images))):
            result[f"{name}_{kind}"] = (trained.indices(batch) == labels).float().mean().item()
        found = trained.indices(garbage(images)) == judge.LABELS.index(judge.GARBAGE)
        result[f"{name}_garbage"] = found.float().mean().item()
    if vae is not None:
        fresh = floats(decoded_noise(vae, n // 2, seed=9))
        found = trained.indices(fresh) == judge.LABELS.index(judge.GARBAGE)
        result["decoded_noise"] = found.float().mean().item()
    return result
