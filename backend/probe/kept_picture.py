"""Blurs flagged pictures before they are written, so that none lies readable on the disk."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLURRED = "blurred"  # the last part of the name of a picture that was blurred
_CELLS = 8  # along the longer side: what is left of a blurred picture


def is_blurred(file: str) -> bool:
    """Return True if the name of a kept picture says that it was blurred before it was written."""
    return file.endswith(f"-{BLURRED}.png")


def blur(image: Tensor) -> Tensor:
    """Reduce a picture, [3, height, width] in 8 bit, to a few cells of its mean colours.

    Averages cannot be undone: no sharpening brings the picture back.
    """
    height, width = image.shape[1:]
    longest = max(height, width)
    rows, columns = (max(1, round(_CELLS * side / longest)) for side in (height, width))
    means = functional.adaptive_avg_pool2d(image[None].float(), (rows, columns))
    grown = functional.interpolate(means, (height, width), mode="bilinear", align_corners=False)
    return grown[0].round().clamp(0, 255).to(torch.uint8)
