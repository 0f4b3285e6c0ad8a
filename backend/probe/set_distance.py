"""Distances between two sets of images, in the feature space of a CLIP model.

FID and KID are defined on Inception's features. Those weights come as TorchScript or pickles, and
loading such a file runs code, so they are not read; a CLIP model in a local folder, as
`.safetensors`, takes their place (Kynkäänniemi et al., arXiv:2203.06026, on why it judges at least
as well). Figures compare with one another for the same CLIP weights and the same real images,
and never with published FID or KID.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.image_set import reason
from ..data.pixels import BROKEN, is_picture, open_image
from ..errors import DataError
from ..scorers.clip_folder import load_clip, pixel_values
from ..scorers.pictures import to_bytes


class SetDistance(NamedTuple):
    """Distances of two sets of images. `frechet` is biased upwards, the more the fewer images:
    compare it only between sets of the same size. `kernel` is not biased, and may be below 0."""

    frechet: float
    kernel: float
    images: int
    references: int


class ClipFeatures:
    """Maps images to vectors: CLIP's image embedding before normalisation to length 1."""

    def __init__(self, weights: str | Path, *, device: torch.device | str = "cpu") -> None:
        """weights: a folder with a CLIP model. Raises ConfigError if it has none."""
        self._folder = Path(weights).expanduser()
        self._model = load_clip(
            "utility: features", self._folder, "CLIPVisionModelWithProjection"
        ).to(device)

    def of_images(self, images: Tensor) -> np.ndarray:
        """Map images [n, 3, height, width] from −1 to 1 to [n, width] in float64."""
        return self._of(to_bytes(images))

    def of_folder(self, folder: str | Path) -> np.ndarray:
        """Map a folder's images, by name, to [n, width]. Raises DataError: none, or broken."""
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"utility: reference: {folder} is not a folder; give one of real images"
            )
        paths = sorted(path for path in folder.iterdir() if path.is_file() and is_picture(path))
        found = []
        for path in paths:
            try:
                picture = np.asarray(open_image(path))
            except BROKEN as error:
                raise DataError(
                    f"utility: reference: {path} cannot be read ({reason(error)}); take it out"
                ) from error
            found.append(self._of(picture[None]))
        if not found:
            raise DataError(f"utility: reference: {folder} has no images")
        return np.concatenate(found)

    @torch.no_grad()
    def _of(self, pictures: np.ndarray) -> np.ndarray:
        """Map images [n, height, width, 3] in 8 bit to features."""
        parts: Iterable[Tensor] = pixel_values(self._model, self._folder, pictures)
        found = [
            self._model(pixel_values=pixels.to(self._model.device)).image_embeds for pixels in parts
        ]
        return torch.cat(found).double().cpu().numpy()


def frechet_and_kernel_distance(
    images: Tensor, reference_folder: str | Path, weights: str | Path
) -> SetDistance:
    """Compute the FID and KID formulas on CLIP's image embedding instead of Inception's features.

    Args:
        images: [n, 3, height, width] from −1 to 1, 2 or more.
        reference_folder: real images. weights: a folder with a CLIP model.
    """
    network = ClipFeatures(weights)
    return set_distance(network.of_images(images), network.of_folder(reference_folder))


def set_distance(first: np.ndarray, second: np.ndarray) -> SetDistance:
    """Return both distances of two sets of features, [n, width] and [m, width]; 2 or more each."""
    if min(len(first), len(second)) < 2:
        raise DataError(f"FID and KID need 2 images or more; these are {len(first)}, {len(second)}")
    return SetDistance(
        frechet_distance(first, second), kernel_distance(first, second), len(first), len(second)
    )


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance ‖μ₁ − μ₂‖² + tr(C₁ + C₂ − 2 (C₁C₂)^½) (Heusel et al., 1706.08500).

    With centred features X and Y, tr (C₁C₂)^½ is the sum of the singular values of XYᵀ over
    √((n − 1)(m − 1)): no square root of a singular matrix, however few images there are.
    """
    roots, spread = [], 0.0
    for features in (first, second):
        centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
        roots.append(np.linalg.qr(centred, mode="r"))
        spread += float(np.square(centred).sum())
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    gap = first.mean(axis=0) - second.mean(axis=0)
    return max(0.0, float(gap @ gap) + spread - 2 * shared)


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Unbiased MMD² with the kernel (x·y / width + 1)³ (Bińkowski et al., arXiv:1801.01401)."""
    width = first.shape[1]

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / width + 1) ** 3

    def within(a: np.ndarray) -> float:
        table = kernel(a, a)
        return float(table.sum() - np.trace(table)) / (len(a) * (len(a) - 1))

    return within(first) + within(second) - 2 * float(kernel(first, second).mean())
