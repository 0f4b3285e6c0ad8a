"""Measures how far a model is from the original where both should agree: predictions, images.

Everything is measured on the latents, noise, prompts and seeds of the original, so the original's
own distances are exactly 0. Nothing is downloaded: the CLIP score takes a CLIP model
from a local folder, in transformers' format, `.safetensors` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..data.encoded_set import EncodedSet
from ..errors import ConfigError, DivergenceError
from ..families.base.conditioning import Conditioning
from ..model.model import Model
from ..numerics.seeds import generator
from ..scorers.clip_folder import load_clip, pixel_values
from ..scorers.pictures import to_bytes

_WINDOW, _SIGMA = 11, 1.5
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from a user study
_BATCH = 8
_VALUES = 2**19  # of images compared at a time; five maps of them are held in float64


@torch.no_grad()
def prediction_drift(
    model: Model, data: EncodedSet, reference: Tensor | None, samples: int
) -> tuple[float, Tensor]:
    """Measure how much the denoiser's predictions (ε or v) differ from the original's: mean squared
    difference, as a share of the variance of the original's.

    Args:
        model: as it is now, adapters included.
        data: the retain set; `samples` of it at most, evenly spread, each with a noise and a
            timestep that depend only on its place.
        reference: the predictions that this function returned for the original; None if this is it.

    Returns:
        the drift (0: the same; about 1: as far as an image's mean), and the predictions,
        [elements] in float32 on the CPU.

    Raises:
        DivergenceError: a prediction is not finite.
    """
    training = model.denoiser.training
    model.denoiser.eval()
    try:
        parts = [
            model.denoise(latents, timesteps, conditioning).float().cpu().flatten()
            for latents, timesteps, conditioning in _noised(model, data, samples)
        ]
    finally:
        model.denoiser.train(training)
    found = torch.cat(parts) if parts else torch.zeros(0)
    if not found.isfinite().all():
        raise DivergenceError(
            "the denoiser's predictions on the retain set are not finite; the fine-tuning before "
            "this evaluation diverged: lower its learning_rate, or use precision fp32"
        )
    if reference is None or not len(found):
        return 0.0, found
    if len(reference) != len(found):
        raise ValueError(f"{len(reference)} predictions cannot be compared with {len(found)}")
    original = reference.double()
    difference = (found.double() - original).square().mean()
    return float(difference / original.var(correction=0)), found


def _noised(
    model: Model, data: EncodedSet, samples: int
) -> Iterator[tuple[Tensor, Tensor, Conditioning]]:
    """Yield noised latents, timesteps and conditioning, in batches of one size."""
    count = min(samples, len(data))
    chosen = [place * len(data) // count for place in range(count)]
    # One timestep from each of `count` equal parts of the schedule, in a mixed order.
    grid = model.process.time_grid(count)
    order = torch.randperm(count, generator=generator(0, "drift", count)).tolist()
    timesteps = [grid[part] for part in order]
    start = done = 0
    for bucket in data.buckets:
        rows = [place - start for place in chosen if start <= place < start + len(bucket)]
        for first in range(0, len(rows), _BATCH):
            part = rows[first : first + _BATCH]
            picks = torch.tensor(part, device=bucket.latents.device)
            latents = bucket.latents[picks].to(model.device, model.dtype)
            shape = latents.shape[1:]
            draws = [generator(0, "drift", "noise", start + row) for row in part]
            noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(latents)
            times = torch.tensor(timesteps[done : done + len(part)], device=model.device)
            captions = bucket.captions[torch.tensor(part)].to(data.conditioning.device)
            conditioning = data.conditioning[captions].to(model.device, model.dtype)
            conditioning = conditioning.beside(bucket.own[picks].to(model.device))
            noised = model.process.add_noise(latents, noise, times)
            yield noised, times, conditioning
            done += len(part)
        start += len(bucket)


def image_distance(images: Tensor, references: Tensor) -> list[float]:
    """Return 1 − MS-SSIM of each pair: 0 for the same picture, towards 1 for unrelated ones.

    Multi-scale structural similarity (Wang, Simoncelli & Bovik, Asilomar 2003), by colour channel
    and then their mean, Gaussian window of 11 pixels. Of its five scales, those at which the
    shorter side still holds the window are used (three at 64 pixels), with their weights scaled
    to sum to 1: compare figures at one resolution only. Anticorrelated structure counts as none.
    It sees shapes and colours, not what they mean.

    Args:
        images, references: [n, channels, height, width] from −1 to 1, sides of 11 or more.
    """
    if images.shape != references.shape or images.dim() != 4:
        raise ValueError(f"pairs of images: {list(images.shape)} and {list(references.shape)}")
    size = max(1, _VALUES // max(1, images[:1].numel()))
    pieces = zip(images.split(size), references.split(size), strict=True)
    return [float(1 - value) for a, b in pieces for value in ms_ssim(a, b)]


def ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return each pair's similarity, [n] in float64 from 0 to 1; arguments as `image_distance`."""
    first, second = first.double(), second.double()
    scales, side = 1, min(first.shape[-2:])
    while scales < len(_SCALES) and side // 2**scales >= _WINDOW:
        scales += 1
    weights = torch.tensor(_SCALES[:scales], dtype=torch.float64)
    weights = weights / weights.sum()
    product = torch.ones(first.shape[:2], dtype=torch.float64)
    for scale, weight in enumerate(weights.tolist(), start=1):
        whole, structure = ssim_maps(first, second)
        kept = whole if scale == scales else structure
        product = product * kept.mean(dim=(-2, -1)).clamp(min=0) ** weight
        first, second = functional.avg_pool2d(first, 2), functional.avg_pool2d(second, 2)
    return product.mean(dim=1)


def ssim_maps(first: Tensor, second: Tensor, span: float = 2.0) -> tuple[Tensor, Tensor]:
    """Return SSIM, and its part of contrast and structure, at each place where the window fits.

    [n, channels, height − 10, width − 10]. Constants .01 and .03 of `span`, the range of values:
    Wang et al., IEEE Transactions on Image Processing 13 (2004), 600-612.
    """
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    stacked = torch.cat([first, second, first * first, second * second, first * second])
    mean_1, mean_2, square_1, square_2, cross = _blurred(stacked).chunk(5)
    variance_1, variance_2 = square_1 - mean_1 * mean_1, square_2 - mean_2 * mean_2
    covariance = cross - mean_1 * mean_2
    structure = (2 * covariance + c2) / (variance_1 + variance_2 + c2)
    light = (2 * mean_1 * mean_2 + c1) / (mean_1 * mean_1 + mean_2 * mean_2 + c1)
    return light * structure, structure


def _blurred(maps: Tensor) -> Tensor:
    """Return Gaussian means over the window, [n, c, h, w] to [n, c, h − 10, w − 10]."""
    offsets = torch.arange(_WINDOW, dtype=maps.dtype) - _WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel = (kernel / kernel.sum()).tolist()
    for dim in (-1, -2):  # sums of shifted copies: torch's convolution in float64 is slow
        length = maps.shape[dim] - _WINDOW + 1
        total = maps.narrow(dim, 0, length) * kernel[0]
        for shift, weight in enumerate(kernel[1:], start=1):
            total.add_(maps.narrow(dim, shift, length), alpha=weight)
        maps = total
    return maps


class ClipScore:
    """Scores how well images fit their prompts: 100 · max(cos, 0) of CLIP's two embeddings.

    Hessel et al., arXiv:2104.08718, with 100 in place of their 2.5, and without the words they
    put before a caption. Prompts are cut at the model's 77 tokens.
    """

    def __init__(self, weights: str | Path, *, device: torch.device | str = "cpu") -> None:
        """weights: a folder with a CLIP model and its tokenizer. Raises ConfigError if not."""
        from transformers import AutoTokenizer

        self._folder = Path(weights).expanduser()
        self._model = load_clip("utility: clip", self._folder, "CLIPModel").to(device)
        if not any((self._folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ConfigError(f"utility: clip: {self._folder} holds no tokenizer; add it")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Score images, [n, 3, height, width] from −1 to 1, from 0 to 100; higher fits better."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images, {len(prompts)} prompts")
        found: list[float] = []
        for pixels in pixel_values(self._model, self._folder, to_bytes(images)):
            vision = self._model.vision_model(pixel_values=pixels.to(self._model.device))
            seen = self._model.visual_projection(vision.pooler_output).double().cpu()
            texts = self._embedded(prompts[len(found) : len(found) + len(seen)])
            cosines = functional.cosine_similarity(seen, texts)
            found += (100 * cosines.clamp(min=0)).tolist()
        return found

    def _embedded(self, prompts: Sequence[str]) -> Tensor:
        """Embed texts as [n, width] in float64; each distinct text is encoded once."""
        new = [text for text in dict.fromkeys(prompts) if text not in self._texts]
        limit = self._model.config.text_config.max_position_embeddings
        if new:
            tokens = self._tokenizer(
                new, padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
            ).to(self._model.device)
            text = self._model.text_model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            )
            vectors = self._model.text_projection(text.pooler_output).double().cpu()
            self._texts |= dict(zip(new, vectors, strict=True))
        return torch.stack([self._texts[text] for text in prompts])
