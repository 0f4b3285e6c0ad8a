"""Turns a picture into pixels for the VAE: orientation, aspect buckets, size and crop.

Buckets as in the field's trainers (after NovelAI's description): sides in steps of 64 pixels,
area at most resolution², sides from half to twice the resolution. A picture goes to the bucket
of the nearest aspect ratio, is resized by the smallest factor that covers it, and cropped in the
centre; so it is enlarged only where it is smaller than its bucket, and no more than needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .picture_file import BROKEN, is_picture, open_image

__all__ = ["BROKEN", "Framed", "Size", "buckets", "choose_bucket", "frame", "is_picture",
           "open_image"]  # fmt: skip

Size = tuple[int, int]  # (height, width) in pixels, or (top, left)


@dataclass(frozen=True, slots=True)
class Framed:
    """A picture prepared for the model.

    pixels: [3, height, width] from -1 to 1. original: the size before. crop: (top, left) of the
    cut in the resized picture. SDXL is conditioned on both.
    """

    pixels: Tensor
    original: Size
    crop: Size

    @property
    def size(self) -> Size:
        return self.pixels.shape[1], self.pixels.shape[2]


@cache
def buckets(resolution: int, stride: int = 8) -> tuple[Size, ...]:
    """List every bucket of a resolution, sorted; in steps of the VAE's stride where that is below
    256 (or not a multiple of 64), as the latents of tiny models would leave no choice otherwise."""
    step = 64 if resolution >= 256 and resolution % 64 == 0 and 64 % stride == 0 else stride
    low, high = max(resolution // 2 // step, 1) * step, resolution * 2
    found = {(resolution, resolution)}
    for side in range(low, high + 1, step):
        other = min(resolution**2 // side // step * step, high)
        if other >= low:
            found |= {(side, other), (other, side)}
    return tuple(sorted(found))


def choose_bucket(height: int, width: int, resolution: int, stride: int = 8) -> Size:
    """Return the bucket of the nearest aspect ratio; of two, the larger."""
    aspect = math.log(width / height)
    return min(
        buckets(resolution, stride),
        key=lambda size: (abs(math.log(size[1] / size[0]) - aspect), -size[0] * size[1], size),
    )


def frame(image: Image.Image, resolution: int, stride: int = 8) -> Framed:
    """Resize to cover the picture's bucket and crop its centre."""
    height, width = choose_bucket(image.height, image.width, resolution, stride)
    scale = max(height / image.height, width / image.width)
    tall = max(height, round(image.height * scale))
    wide = max(width, round(image.width * scale))
    top, left = (tall - height) // 2, (wide - width) // 2
    resized = image.resize((wide, tall), Image.Resampling.LANCZOS)
    cut = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32)
    pixels = torch.from_numpy(cut / 127.5 - 1).permute(2, 0, 1).contiguous()
    return Framed(pixels, (image.height, image.width), (top, left))
