"""Train the oracle: the demo's denoiser, from nothing, on pictures without the concept.

A model that never saw the concept is what removal is measured against: fine-tuning teaches it the
concept as it would teach it anything new. It has the demo's architecture, autoencoder and text
encoder and the recipe of `denoiser.py`, by steps instead of minutes; the weapons are left out of
its pictures and captions.

    python tools/train_demo/oracle.py --seed 1 --output oracle-1.safetensors

writes the denoiser's tensors under diffusers' names, in float32 (13 MB); about 13 minutes on one
core. `benchmarks/resilience.py run --oracles FOLDER` measures what is in the folder.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from denoiser import CAPTION_DROPOUT, LARGEST_WEIGHT, RATE, alphas_cumprod
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from world import Average, art, floats, images_of

from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.demo.plans import CHECKPOINT
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.model.encode import encode_images, encode_prompts
from resalign.backend.model.model import Model

PICTURES, CAPTIONS, STEPS = 8000, 3, 3000
SMALL_BATCH, BATCH, SMALL_SHARE = 16, 32, 0.4  # the first steps see half as many pictures


def encoded(model: Model, seed: int) -> tuple[Tensor, Conditioning, Tensor]:
    """Latents [n, 4, 8, 8] of benign pictures, the encodings of all captions (the empty one first)
    and each picture's captions as places among these, [n, CAPTIONS].
    """
    specs = art.sample_specs(PICTURES, 10_000 + seed, art.BENIGN)
    pieces = images_of(specs, 10_000 + seed).split(64)
    latents = torch.cat([encode_images(model, floats(piece)) for piece in pieces])
    rng, known = np.random.default_rng(10_000 + seed), {"": 0}
    places = torch.tensor(
        [
            [known.setdefault(art.caption(spec, rng), len(known)) for _ in range(CAPTIONS)]
            for spec in specs
        ]
    )
    return latents, encode_prompts(model, list(known)), places


def fresh(model: Model) -> UNet2DConditionModel:
    """Build the demo's denoiser with new weights; residual branches and the output are zero."""
    unet = UNet2DConditionModel.from_config(model.denoiser.config)
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out")) or name == "conv_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


def train(model: Model, seed: int, steps: int = STEPS) -> UNet2DConditionModel:
    """Train for `steps` with the recipe of `denoiser.train`; return the averaged weights."""
    latents, texts, places = encoded(model, seed)
    torch.manual_seed(seed)
    device = model.device
    unet, abar = fresh(model).to(device), alphas_cumprod().to(device)
    texts = texts.to(device)
    parameters = list(unet.parameters())
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=1e-3, betas=(0.9, 0.99))
    average, start = Average(parameters), time.process_time()
    running: Tensor | float = 0.0
    for step in range(steps):
        share = step / steps
        cosine = max(0.01, (1 + math.cos(math.pi * share)) / 2)
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 100) * cosine
        batch = SMALL_BATCH if share < SMALL_SHARE else BATCH
        pick = torch.randint(len(latents), (batch,))
        chosen = places[pick, torch.randint(CAPTIONS, (batch,))]
        chosen[torch.rand(batch) < CAPTION_DROPOUT] = 0
        middling = torch.sigmoid(0.5 + torch.randn(batch))
        times = torch.where(torch.rand(batch) < 0.6, torch.rand(batch), middling)
        times = (1000 * times).long().clamp(0, 999).to(device)
        alpha = abar[times].view(-1, 1, 1, 1)
        clean = latents[pick]
        noise = torch.randn_like(clean)  # on the CPU, whatever the device
        clean, noise = clean.to(device), noise.to(device)
        noised = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        prediction = model.family.denoise(unet, noised, times, texts[chosen])
        error = (prediction - noise).square().mean((1, 2, 3))
        loss = ((1 / abar[times]).clamp(max=LARGEST_WEIGHT) * error).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        found = loss.detach()
        running = found if step == 0 else 0.99 * running + 0.01 * found
        if (step + 1) % 250 == 0:
            seconds = time.process_time() - start
            print(f"oracle {step + 1} loss {float(running):.3f} {seconds:.0f} CPU s", flush=True)
    average.swap()
    return unet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(CHECKPOINT, device=arguments.device, dtype=torch.float32)
    unet = train(model, arguments.seed, arguments.steps)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in unet.state_dict().items()}
    save_file(tensors, arguments.output, metadata={"seed": str(arguments.seed)})


if __name__ == "__main__":
    main()
