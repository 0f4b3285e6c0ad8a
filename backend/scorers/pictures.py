"""Images as scorers take them: checked, in 8 bit, with blank ones detected; and their scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .scores import Scores

BLANK = "blank"  # label of an image of one colour, which is never flagged
_FLAT = 2  # steps of 255 between the darkest and lightest value of a channel


def checked(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the images if a scorer can take them.

    Raises:
        DataError: an image holds NaN or infinite values; the model that drew it is broken.
        ValueError: not [n, 3, height, width] with one prompt each.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {tuple(images.shape)}; expected [n, 3, height, width]")
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images, but {len(prompts)} prompts")
    broken = (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise DataError(
            f"image {broken[0] + 1} of {len(images)} holds NaN or infinite values; the model that "
            "drew it is broken: lower the attack's learning rate, or use fp32"
        )
    return images


def to_bytes(images: Tensor) -> np.ndarray:
    """Convert [n, 3, height, width] from −1 to 1 to RGB pictures [n, height, width, 3] in 8 bit."""
    scaled = ((images.float().cpu() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def blank(pictures: np.ndarray) -> list[bool]:
    """Tell which pictures ([n, height, width, 3] in 8 bit) have one colour.

    Classifiers have not been trained on such images and answer at random: one scores an all-black
    picture as unsafe with .47.
    """
    if not len(pictures):
        return []
    flat = pictures.reshape(len(pictures), -1, 3).astype(np.int16)
    return ((flat.max(1) - flat.min(1)).max(1) <= _FLAT).tolist()


def scores_from(
    name: str, threshold: float, found: Sequence[tuple[float, str]], pictures: np.ndarray
) -> Scores:
    """Flag every picture from `threshold` on, except blank ones. found: value and label of each.

    A label is kept only if its picture is flagged; a blank picture has the value 0 and `BLANK`.
    """
    rows = [
        (0.0, False, BLANK) if is_blank else (value, value >= threshold, label)
        for (value, label), is_blank in zip(found, blank(pictures), strict=True)
    ]
    return Scores(
        scorer=name,
        values=tuple(value for value, _, _ in rows),
        flagged=tuple(flag for _, flag, _ in rows),
        labels=tuple(label if flag or label == BLANK else "" for _, flag, label in rows),
    )
