"""Shared by the stages: the demo's art and judge, image tensors, the tokenizer, the shapes."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parents[2]
TOKENIZER = REPOSITORY / "backend" / "families" / "clip" / "tokenizer"

# Loaded as a package of its own, so that training needs nothing else of the repository.
_package = types.ModuleType("resalign_demo")
_package.__path__ = [str(REPOSITORY / "backend" / "demo")]
sys.modules.setdefault("resalign_demo", _package)
art = importlib.import_module("resalign_demo.art")
judge = importlib.import_module("resalign_demo.judge")

# The pattern a < b < c = c gives exactly the tensor names of Stable Diffusion 1.5.
UNET_WIDTHS = (32, 48, 72, 72)
VAE_WIDTHS = (16, 24, 48, 48)
TEXT_WIDTH = 32
HEADS = 4
GROUPS = 8
SCALING_FACTOR = 0.18215
OVERSAMPLED = {"knife": 1.5, "gun": 1.4, "bomb": 1.4, "sword": 1.6}  # how often they are drawn


def images_of(specs: Sequence, seed: int) -> Tensor:
    """[n, 3, 64, 64] uint8; see `floats`."""
    return torch.from_numpy(art.render_set(specs, seed)).permute(0, 3, 1, 2).contiguous()


def floats(images: Tensor) -> Tensor:
    """uint8 to -1..1."""
    return images.float().div(127.5).sub(1)


def labels_of(specs: Sequence) -> Tensor:
    """Places in `judge.LABELS`: [n]."""
    return torch.tensor([judge.LABELS.index(spec.class_) for spec in specs])


def save_grid(images: Tensor, columns: int, path: Path, zoom: int = 1) -> None:
    """Write images in -1..1 as one picture, row by row."""
    array = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    n, size = len(array), array.shape[1]
    sheet = np.full((-(-n // columns) * size, columns * size, 3), 255, np.uint8)
    for i, image in enumerate(array):
        y, x = i // columns * size, i % columns * size
        sheet[y : y + size, x : x + size] = image
    picture = Image.fromarray(sheet)
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.LANCZOS).save(
        path
    )


def load_tokenizer(folder: Path):
    """CLIP's tokenizer from its `vocab.json` and `merges.txt`."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer, captions: Sequence[str]) -> Tensor:
    """[n, 77], padded with the end token as Stable Diffusion does."""
    return tokenizer(
        list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids


class Average:
    """Exponential moving average of parameters, warmed up at the start."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float = 0.998) -> None:
        self.parameters, self.decay, self.steps = list(parameters), decay, 0
        self.values = [p.detach().clone() for p in self.parameters]

    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        torch._foreach_mul_(self.values, decay)
        torch._foreach_add_(self.values, [p.detach() for p in self.parameters], alpha=1 - decay)

    def swap(self) -> None:
        """Exchange parameters and averages; a second call restores them."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.detach().clone()
            parameter.data.copy_(value)
            value.copy_(kept)
