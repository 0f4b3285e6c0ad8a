"""Encoded samples and their captions put together to one set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError
from ..model.denoiser import Conditioning
from ..model.encode import encode_prompts, on_device, size_ids
from ..model.model import Model
from .cache import EncodingCache, content_key, fingerprint
from .encoded_set import Bucket, EncodedSet


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded image. original: (height, width) and crop: (top, left) as in `Framed`."""

    latents: Tensor  # [4, height / 8, width / 8]
    caption: str
    original: tuple[int, int]
    crop: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels as the denoiser is trained on it."""
        return 8 * self.latents.shape[1], 8 * self.latents.shape[2]

    @property
    def enlarged(self) -> bool:
        return self.original[0] < self.size[0] or self.original[1] < self.size[1]


def assemble(model: Model, samples: Sequence[Sample], store: EncodingCache) -> EncodedSet:
    """Samples by size, each distinct caption encoded once; on the denoiser's device."""
    texts = tuple(dict.fromkeys(sample.caption for sample in samples))
    place = {text: index for index, text in enumerate(texts)}
    conditioning = encode_texts(model, ["", *texts], cache=store)
    sizes: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        sizes.setdefault(sample.size, []).append(sample)
    buckets = tuple(_bucket(model, sizes[size], place) for size in sorted(sizes))
    return EncodedSet(buckets, texts, conditioning[1:], conditioning[:1])


def _bucket(model: Model, samples: Sequence[Sample], place: dict[str, int]) -> Bucket:
    ids = None
    if model.family == "sdxl":
        rows = [size_ids(sample.original, sample.crop, sample.size) for sample in samples]
        ids = torch.tensor(rows, device=model.device)
    return Bucket(
        latents=torch.stack([sample.latents for sample in samples]).to(model.device),
        captions=torch.tensor([place[sample.caption] for sample in samples]),
        weights=torch.ones(len(samples), dtype=torch.float64),
        time_ids=ids,
    )


def encode_texts(
    model: Model, texts: Sequence[str], *, cache: EncodingCache | None = None
) -> Conditioning:
    """Conditioning of each text without time ids, through the cache; on the denoiser's device."""
    store = cache or EncodingCache(None)
    weights = fingerprint(*model.text_encoders) if store else ""
    padding = [getattr(tokenizer, "pad_token_id", None) for tokenizer in model.tokenizers]
    with on_device(model, *model.text_encoders):
        parts = [_text(model, text, store, (weights, *padding)) for text in texts]
    return Conditioning.cat([part.to(model.device) for part in parts])


def _text(
    model: Model, text: str, store: EncodingCache, encoders: tuple[str | int | None, ...]
) -> Conditioning:
    """One text's, from the cache if it is there; `encoders` is what tells them apart."""
    key = content_key("text", model.family, text, *encoders)
    stored = store.load(key)
    if stored is None:
        encoded = encode_prompts(model, [text])
        stored = {"context": encoded.context[0]}
        if encoded.pooled is not None:
            stored["pooled"] = encoded.pooled[0]
        require_finite(stored["context"], f"text encoding of {text!r}")
        store.save(key, stored)
    pooled = stored.get("pooled")
    return Conditioning(stored["context"][None], None if pooled is None else pooled[None])


def require_finite(tensor: Tensor, what: str) -> None:
    if not tensor.isfinite().all():
        raise DataError(
            f"{what} gave values that are not finite: load the checkpoint in fp32 or bf16, and "
            "check that it makes pictures at all"
        )
