"""An encoded set of images: latents by size, and the conditioning of each distinct caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..families.base.conditioning import Conditioning


@dataclass(frozen=True, slots=True)
class Bucket:
    """The samples of one size.

    latents: [n, channels, height, width], as the denoiser takes them. captions: [n], index into
    the set's texts. weights: [n], float64, the chance of each relative to the others.
    own: conditioning of each sample besides its text (SDXL: size and crop).
    `captions` and `weights` stay on the CPU, where draws are made.
    """

    latents: Tensor
    captions: Tensor
    weights: Tensor
    own: Conditioning = field(default_factory=Conditioning)

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """Latents with their conditioning, drawn from in batches of one size.

    texts: the distinct captions. conditioning: of each text. empty: of the empty prompt, [1];
    replaces a dropped caption. Neither includes the samples' own conditioning.
    """

    buckets: tuple[Bucket, ...]
    texts: tuple[str, ...]
    conditioning: Conditioning
    empty: Conditioning

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def draw(
        self, generator: torch.Generator, batch: int, *, caption_dropout: float = 0.0
    ) -> tuple[Tensor, Conditioning]:
        """Draw latents and their conditioning; the result depends only on the generator.

        A bucket is drawn by its weight, then samples of it, none twice unless the bucket holds
        fewer than `batch`. Captions are dropped with the chance `caption_dropout`; size and
        crop are not.
        """
        totals = torch.stack([bucket.weights.sum() for bucket in self.buckets])
        bucket = self.buckets[int(torch.multinomial(totals, 1, generator=generator))]
        rounds = -(-batch // len(bucket))
        picks = torch.cat(
            [
                torch.multinomial(bucket.weights, min(batch, len(bucket)), generator=generator)
                for _ in range(rounds)
            ]
        )[:batch]
        dropped = torch.rand(batch, generator=generator) < caption_dropout
        device = bucket.latents.device
        captions, picks = bucket.captions[picks].to(device), picks.to(device)
        conditioning = self.conditioning[captions].where(dropped.to(device), self.empty)
        return bucket.latents[picks], conditioning.beside(bucket.own[picks])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> EncodedSet:
        """Move latents and embeddings, and cast them; sizes in pixels stay exact."""
        return replace(
            self,
            buckets=tuple(
                replace(
                    bucket,
                    latents=bucket.latents.to(device, dtype),
                    own=bucket.own.to(device, dtype),
                )
                for bucket in self.buckets
            ),
            conditioning=self.conditioning.to(device, dtype),
            empty=self.empty.to(device, dtype),
        )


def merge(sets: Sequence[EncodedSet], weights: Sequence[float] | None = None) -> EncodedSet:
    """Merge several sets, encoded by the same model, into one.

    weights: the share of draws that each set gets, relative to the others, however large it
        is; by default each sample is as likely as any other.
    """
    if not sets or (weights is not None and len(weights) != len(sets)):
        raise ValueError(f"merge: {len(sets)} sets, {weights} weights")
    if weights is not None and min(weights) <= 0:
        raise ValueError(f"merge: weights must be more than 0, not {list(weights)}")
    texts = tuple(dict.fromkeys(text for part in sets for text in part.texts))
    place = {text: index for index, text in enumerate(texts)}
    first_use: dict[str, Conditioning] = {}
    sizes: dict[tuple[int, ...], list[Bucket]] = {}
    for index, part in enumerate(sets):
        total = sum(float(bucket.weights.sum()) for bucket in part.buckets)
        factor = 1.0 if weights is None else weights[index] / total
        places = torch.tensor([place[text] for text in part.texts])
        for number, text in enumerate(part.texts):
            first_use.setdefault(text, part.conditioning[number : number + 1])
        for bucket in part.buckets:
            moved = replace(
                bucket, captions=places[bucket.captions], weights=bucket.weights * factor
            )
            sizes.setdefault(tuple(bucket.latents.shape[2:]), []).append(moved)
    return EncodedSet(
        buckets=tuple(_joined(sizes[size]) for size in sorted(sizes)),
        texts=texts,
        conditioning=Conditioning.cat([first_use[text] for text in texts]),
        empty=sets[0].empty,
    )


def split(encoded: EncodedSet, share: float) -> tuple[EncodedSet, EncodedSet]:
    """Split off a share of the samples, evenly spread: return the rest, and what was split off.

    Neither part is empty.

    Raises:
        ValueError: the set has one sample only.
    """
    total = len(encoded)
    if total < 2:
        raise ValueError(f"a set of {total} cannot be split")
    count = min(total - 1, max(1, round(share * total)))
    apart = {int((place + 0.5) * total / count) for place in range(count)}
    first, rest, chosen = 0, [], []
    for bucket in encoded.buckets:
        places = range(first, first + len(bucket))
        for parts, wanted in ((rest, False), (chosen, True)):
            picks = [place - first for place in places if (place in apart) == wanted]
            if picks:
                parts.append(_picked(bucket, picks))
        first += len(bucket)
    return replace(encoded, buckets=tuple(rest)), replace(encoded, buckets=tuple(chosen))


def _picked(bucket: Bucket, picks: list[int]) -> Bucket:
    chosen = torch.tensor(picks)
    there = chosen.to(bucket.latents.device)
    return Bucket(
        bucket.latents[there], bucket.captions[chosen], bucket.weights[chosen], bucket.own[there]
    )


def _joined(parts: list[Bucket]) -> Bucket:
    return Bucket(
        torch.cat([part.latents for part in parts]),
        torch.cat([part.captions for part in parts]),
        torch.cat([part.weights for part in parts]),
        Conditioning.cat([part.own for part in parts]),
    )
