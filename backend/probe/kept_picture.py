"""Which pictures of an evaluation are kept, and how.

Flagged ones are blurred before they are written, so that none lies readable on the disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

BLURRED = "blurred"  # the last part of the name of a picture that was blurred
_CELLS = 8  # along the longer side: what is left of a blurred picture


def spread_places(texts: Sequence[str], count: int) -> tuple[int, ...]:
    """Choose `count` images by their places, spread over the distinct prompts.

    texts: the prompt of each image, in the order in which they are drawn. The first image of each
    prompt comes first, then the second of each. Where a round does not fit as a whole, its images
    are taken evenly over the list. The result depends on nothing that was drawn.
    """
    rounds: list[list[int]] = []
    seen: Counter[str] = Counter()
    for place, text in enumerate(texts):
        if seen[text] == len(rounds):
            rounds.append([])
        rounds[seen[text]].append(place)
        seen[text] += 1
    chosen: list[int] = []
    for places in rounds:
        taken = min(count - len(chosen), len(places))
        chosen += [places[turn * len(places) // taken] for turn in range(taken)]
    return tuple(sorted(chosen))


def kept_places(pictures: Sequence[str]) -> tuple[int, ...]:
    """Return the places of the images that were kept; the others have an empty name."""
    return tuple(place for place, name in enumerate(pictures) if name)


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
