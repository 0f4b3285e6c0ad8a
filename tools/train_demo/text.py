"""Stage `text`: pretrain the text encoder so that every padding position knows the caption.

Trained jointly with the denoiser from random weights, the encoder conveys nothing: 63 of the
77 positions are padding, and attention that is uniform at first dilutes the one word that
matters. So linear heads read class, style and background off the end token and off random
padding positions; the heads are thrown away and the encoder is frozen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import update
from transformers import CLIPTextConfig, CLIPTextModel
from world import HEADS, TEXT_WIDTH, art, load_tokenizer, tokenize

END = 49407
BATCH = 32
SUFFIXES = (", high quality", ", simple", ", centered", ", detailed", " icon", ", flat design")


def build() -> CLIPTextModel:
    """CLIP's text encoder with its whole vocabulary, twelve layers, 32 wide."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=12,
            num_attention_heads=HEADS,
            max_position_embeddings=77,
            projection_dim=TEXT_WIDTH,
            bos_token_id=49406,
            eos_token_id=END,
            hidden_act="quick_gelu",
        )
    )
    for name, parameter in encoder.named_parameters():
        if "token_embedding" in name:
            nn.init.normal_(parameter, 0, 0.1)
    return encoder


def labelled_captions(n: int, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """Captions with the places of class, style, background in their lists: [n, 3]. What a
    caption does not say has the place after the last; two in a hundred are empty."""
    captions, labels = [], []
    backgrounds = list(art.BACKGROUNDS)
    for _ in range(n):
        spec = art.Spec(
            str(rng.choice(art.CLASSES)), str(rng.choice(art.STYLES)), str(rng.choice(backgrounds))
        )
        text = art.caption(spec, rng)
        places = [art.CLASSES.index(spec.class_), len(art.STYLES), len(backgrounds)]
        if spec.style in text.split():
            places[1] = art.STYLES.index(spec.style)
        if text.endswith("background"):
            places[2] = backgrounds.index(spec.background)
        if rng.random() < 0.1:
            text += str(rng.choice(SUFFIXES))
        if rng.random() < 0.02:
            text, places = "", [len(art.CLASSES), len(art.STYLES), len(backgrounds)]
        captions.append(text)
        labels.append(places)
    return captions, torch.tensor(labels)


def train_to_tell(
    encoder: nn.Module,
    width: int,
    read: Callable[[list[str]], Tensor],
    steps: int,
    rng: np.random.Generator,
) -> None:
    """Train the encoder with linear heads that read class, style and background; drop the heads.

    read: captions to the states that the heads see, [batch, places, width].
    """
    sizes = (len(art.CLASSES), len(art.STYLES), len(art.BACKGROUNDS))
    heads = nn.ModuleList(nn.Linear(width, size + 1) for size in sizes)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, 3e-3, weight_decay=0.0, betas=(0.9, 0.98))
    start = time.time()
    for step in range(steps):
        cosine = max(0.02, (1 + math.cos(math.pi * step / steps)) / 2)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 30) * cosine
        captions, labels = labelled_captions(BATCH, rng)
        states = read(captions)
        logits = [head(states) for head in heads]
        loss = sum(
            F.cross_entropy(out.flatten(0, 1), labels[:, i].repeat_interleave(states.shape[1]))
            for i, out in enumerate(logits)
        )
        update(loss, optimizer)
        if step % 50 == 0 or step == steps - 1:
            right = [
                round((out.argmax(-1) == labels[:, i : i + 1]).float().mean().item(), 2)
                for i, out in enumerate(logits)
            ]
            seconds = time.time() - start
            print(f"text {step} loss {loss.item():.3f} {right} {seconds:.0f} s", flush=True)


def train(folder: Path, tokenizer_folder: Path, steps: int = 450, seed: int = 0) -> CLIPTextModel:
    """Pretrain and write `folder`."""
    torch.manual_seed(seed)
    rng, tokenizer = np.random.default_rng(seed), load_tokenizer(tokenizer_folder)
    encoder = build()

    def read(captions: list[str]) -> Tensor:
        tokens = tokenize(tokenizer, captions)
        hidden = encoder(tokens).last_hidden_state
        first_end = (tokens != END).sum(1, keepdim=True)
        padding = first_end + (torch.rand(BATCH, 3) * (77 - first_end)).long()
        places = torch.cat([first_end, padding], 1)
        return hidden.gather(1, places[..., None].expand(-1, -1, TEXT_WIDTH))

    train_to_tell(encoder, TEXT_WIDTH, read, steps, rng)
    encoder.save_pretrained(folder)
    return encoder
