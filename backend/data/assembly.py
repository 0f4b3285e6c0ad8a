"""Encoded samples and their captions put together to one set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError
from ..families.base.conditioning import Conditioning
from ..model.encode import encode_tokens, on_device, tokenise
from ..model.model import Model
from .cache import EncodingCache, content_key, fingerprint
from .encoded_set import Bucket, EncodedSet


@dataclass(frozen=True, slots=True)
class Sample:
    """An encoded image. original: (height, width) and crop: (top, left) as in `Framed`."""

    latents: Tensor  # [channels, height, width]
    caption: str
    original: tuple[int, int]
    crop: tuple[int, int]
    size: tuple[int, int]  # (height, width) in pixels as the denoiser is trained on it

    @property
    def enlarged(self) -> bool:
        return self.original[0] < self.size[0] or self.original[1] < self.size[1]


def assemble(model: Model, samples: Sequence[Sample], store: EncodingCache) -> EncodedSet:
    """Build a set of samples by size, on the denoiser's device; encode distinct captions once."""
    texts = tuple(dict.fromkeys(sample.caption for sample in samples))
    place = {text: index for index, text in enumerate(texts)}
    conditioning = encode_texts(model, ["", *texts], cache=store)
    sizes: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        sizes.setdefault(sample.size, []).append(sample)
    buckets = tuple(_bucket(model, sizes[size], place) for size in sorted(sizes))
    return EncodedSet(buckets, texts, conditioning[1:], conditioning[:1])


def _bucket(model: Model, samples: Sequence[Sample], place: dict[str, int]) -> Bucket:
    sizes = [(sample.original, sample.crop, sample.size) for sample in samples]
    return Bucket(
        latents=torch.stack([sample.latents for sample in samples]).to(model.device),
        captions=torch.tensor([place[sample.caption] for sample in samples]),
        weights=torch.ones(len(samples), dtype=torch.float64),
        own=model.family.texts.of_samples(sizes, model.device),
    )


def encode_texts(
    model: Model, texts: Sequence[str], *, cache: EncodingCache | None = None
) -> Conditioning:
    """Encode each text, through the cache, without the samples' own conditioning."""
    store = cache or EncodingCache(None)
    weights = fingerprint(*model.text_encoders) if store else ""
    padding = [getattr(tokenizer, "pad_token_id", None) for tokenizer in model.tokenizers]
    with on_device(model, *model.text_encoders):
        parts = [_text(model, text, store, (weights, *padding)) for text in texts]
    return Conditioning.cat([part.to(model.device) for part in parts])


@torch.no_grad()
def _text(
    model: Model, text: str, store: EncodingCache, encoders: tuple[str | int | None, ...]
) -> Conditioning:
    """Encode one text, or read it from the cache; `encoders` identifies the model in the key."""
    key = content_key("text", model.family.name, text, *encoders)
    stored = store.load(key)
    if stored is None:
        encoded = encode_tokens(model, tokenise(model, [text])).to(model.device)
        stored = {name: part[0] for name, part in encoded.parts.items()}
        for part in stored.values():
            require_finite(part, f"text encoding of {text!r}")
        store.save(key, stored)
    return Conditioning({name: part[None] for name, part in stored.items()})


def require_finite(tensor: Tensor, what: str) -> None:
    if not tensor.isfinite().all():
        raise DataError(
            f"{what} gave values that are not finite: load the checkpoint in fp32 or bf16, and "
            "check that it makes pictures at all"
        )
