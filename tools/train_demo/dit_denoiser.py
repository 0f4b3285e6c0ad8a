"""Stage `denoiser` of the transformer test-bed: a small Flux2Transformer2DModel, by flow matching.

The loss is the mean squared error of the velocity, unweighted. Three quarters of the times are
drawn as the family's trainers draw them (logit-normal, shifted by exp 1.15), the rest uniformly.
Modulations and the output start at zero, so that every block is the identity at first. The text
encoder is frozen, so each caption is encoded once.

    python tools/train_demo/dit_denoiser.py --out DIR --without-concept --seed 1 --minutes 25

trains an oracle: the same network from nothing on the same number of pictures, none of which shows
a weapon. It is written to DIR/oracle-1.safetensors, for `benchmarks/resilience.py --oracles DIR`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from dit_shared import (
    CHANNELS,
    DOUBLE,
    FAMILY,
    HEAD,
    PROCESS,
    SINGLE,
    TEXT_WIDTH,
    WIDTH,
    reader,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from training import Resumable, update
from world import OVERSAMPLED, Average, art, floats, images_of

from resalign.backend.families.base.conditioning import Conditioning

PICTURES, CAPTIONS = 12_000, 4
RATE, BATCH, CAPTION_DROPOUT, WARM_UP = 2e-3, 32, 0.1, 200
UNIFORM_SHARE = 0.25  # of the times


def build() -> Flux2Transformer2DModel:
    """Build the network with new weights."""
    network = Flux2Transformer2DModel(
        in_channels=CHANNELS, num_layers=DOUBLE, num_single_layers=SINGLE,
        attention_head_dim=HEAD, num_attention_heads=WIDTH // HEAD,
        joint_attention_dim=3 * TEXT_WIDTH, timestep_guidance_channels=256, mlp_ratio=3.0,
        axes_dims_rope=(HEAD // 4,) * 4, guidance_embeds=False,
    )  # fmt: skip
    for name, module in network.named_modules():
        if ("modulation" in name and name.endswith("linear")) or name in ("proj_out",):
            nn.init.zeros_(module.weight)
    return network


@torch.no_grad()
def prepare(folder: Path, classes: Sequence[str], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Encode pictures and captions once.

    Returns:
        latents [n, 128, 4, 4]; contexts [captions, 24, 144], the empty caption's first; each
        picture's captions as places among these, [n, 4].
    """
    from dit_text import load_tokenizer
    from transformers import Qwen3Model

    vae = AutoencoderKLFlux2.from_pretrained(folder / "vae").eval()
    model = reader(
        Qwen3Model.from_pretrained(folder / "text").eval(), load_tokenizer(folder / "tokenizer")
    )
    specs = art.sample_specs(PICTURES, seed, classes, weights=OVERSAMPLED)
    space = FAMILY.latents.space(vae.config)
    pieces = images_of(specs, seed).split(64)
    latents = torch.cat([FAMILY.latents.encode(vae, floats(p), space, None) for p in pieces])
    rng, known = np.random.default_rng(seed), {"": 0}
    caption_of = torch.tensor(
        [
            [known.setdefault(art.caption(spec, rng), len(known)) for _ in range(CAPTIONS)]
            for spec in specs
        ]
    )
    contexts = FAMILY.texts.encode(model, FAMILY.texts.tokenise(model, list(known)))["context"]
    return latents, contexts, caption_of


def draw_times(batch: int, generator: torch.Generator) -> Tensor:
    """Draw the times of a batch, from 0 to 1000: [batch]."""
    times = PROCESS.sample_times(batch, generator)
    uniform = 1000 * torch.rand(batch, generator=generator)
    return torch.where(torch.rand(batch, generator=generator) < UNIFORM_SHARE, uniform, times)


def train(
    minutes: float,
    folder: Path,
    *,
    classes: Sequence[str] = art.CLASSES,
    seed: int = 0,
    name: str = "denoiser",
    steps: int = 0,
) -> None:
    """Train with a cosine over time, or over `steps` where they are given.

    The average is written to `folder/name.safetensors` at the end, and before that every three
    minutes to `folder/name-early.safetensors`; an interrupted run continues from `name.pt`.
    """
    latents, contexts, caption_of = prepare(folder, classes, 500 + seed)
    torch.manual_seed(seed)
    network, generator = build(), torch.Generator().manual_seed(seed)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=1e-3, betas=(0.9, 0.98))
    average, running = Average(parameters), 0.0
    state = Resumable(folder / f"{name}.pt", "network", network, optimizer, average)
    step, before = state.load()
    if step:
        generator.manual_seed(seed + step)
    start, next_save = time.time() - before, before + 180
    while True:
        elapsed = time.time() - start
        share = step / steps if steps else elapsed / (60 * minutes)
        if share >= 1:
            break
        cosine = max(0.01, (1 + math.cos(math.pi * share)) / 2)
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARM_UP) * cosine
        pick = torch.randint(len(latents), (BATCH,), generator=generator)
        column = torch.randint(CAPTIONS, (BATCH,), generator=generator)
        chosen = caption_of[pick, column]
        chosen[torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT] = 0
        times = draw_times(BATCH, generator)
        clean = latents[pick]
        noise = torch.randn(clean.shape, generator=generator)
        predicted = FAMILY.denoise(
            network, PROCESS.add_noise(clean, noise, times), times,
            Conditioning({"context": contexts[chosen]}),
        )  # fmt: skip
        loss = (predicted - PROCESS.target(clean, noise, times)).square().mean()
        update(loss, optimizer, average)
        step += 1
        running = loss.item() if running == 0 else 0.99 * running + 0.01 * loss.item()
        if step % 100 == 0:
            print(f"{name} {step} loss {running:.4f} {elapsed:.0f} s "
                  f"{time.process_time():.0f} CPU s", flush=True)  # fmt: skip
        if elapsed > next_save:
            next_save += 180
            state.save(step, elapsed)
            average.swap()
            _write(network, folder / f"{name}-early.safetensors", seed, step)
            average.swap()
    average.swap()
    _write(network, folder / f"{name}.safetensors", seed, step)
    print(f"{name}: {step} steps, {time.time() - start:.0f} s", flush=True)


def _write(network: nn.Module, path: Path, seed: int, step: int) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path, metadata={"seed": str(seed), "steps": str(step)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="work folder of dit_train.py")
    parser.add_argument("--without-concept", action="store_true", help="train an oracle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--steps", type=int, default=0, help="instead of minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    oracle = arguments.without_concept
    train(
        arguments.minutes, arguments.out, classes=art.BENIGN if oracle else art.CLASSES,
        seed=arguments.seed, steps=arguments.steps,
        name=f"oracle-{arguments.seed}" if oracle else "denoiser",
    )  # fmt: skip


if __name__ == "__main__":
    main()
