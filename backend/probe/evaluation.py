"""One look at a model: draw for every prompt, score, and compare with what the original drew.

Images are drawn and scored in pieces, so that memory does not grow with the number of prompts.
The same prompts and seeds give the same pictures from the same weights, to the bit on a CPU.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ..data.encoded_set import EncodedSet
from ..model.denoiser import Conditioning
from ..model.encode import encode_prompts, encoders_on_device
from ..model.generate import generate_images
from ..model.model import Model
from ..plan.probe import ProbePlan
from ..progress import Picture
from ..scorers.protocol import ModelScorer, Scorer
from .folder import ProbeFolder, to_pixels
from .prompts import ImageRequest
from .results import Look, Scores, SetLook
from .results_io import Outbox
from .set_distance import ClipFeatures, set_distance
from .utility import ClipScore, image_distance, prediction_drift

CONCEPT = "concept"  # the set of scorers that look at the model itself
COMPARED = ("neighbour", "retain")  # kinds whose images are compared with the original's
_PIECE = 64  # images in memory at a time, at least one batch

Tell = Callable[[int, int], None]


@dataclass(slots=True)
class Reference:
    """What the original draws and predicts, before any attack.

    images: of the compared kinds, [n, 3, height, width] in 8 bit. predictions: on the retain
    set, for `drift`. errors: of each scorer of models, by its name.
    """

    images: dict[str, Tensor] = field(default_factory=dict)
    predictions: Tensor | None = None
    errors: dict[str, Tensor] = field(default_factory=dict)

    def to_tensors(self) -> dict[str, Tensor]:
        tensors = {f"images.{kind}": images for kind, images in self.images.items()}
        tensors |= {f"errors.{name}": errors for name, errors in self.errors.items()}
        return tensors if self.predictions is None else tensors | {"predictions": self.predictions}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Reference:
        found = Reference(predictions=tensors.get("predictions"))
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "images":
                found.images[rest] = tensor
            elif part == "errors":
                found.errors[rest] = tensor
        return found


class Texts:
    """Prompts as conditioning, encoded once for as long as the text encoder stays the same."""

    def __init__(self, requests: Mapping[str, Sequence[ImageRequest]], resolution: int) -> None:
        texts = [request.text for part in requests.values() for request in part]
        self._distinct = ["", *dict.fromkeys(text for text in texts if text)]
        self._places = {text: place for place, text in enumerate(self._distinct)}
        self._size = resolution, resolution
        self._encoded: Conditioning | None = None

    def forget(self) -> None:
        """The text encoder is another one now."""
        self._encoded = None

    def of(
        self, model: Model, requests: Sequence[ImageRequest]
    ) -> tuple[Conditioning, Conditioning]:
        """Conditioning of each request, and of the empty prompt."""
        if self._encoded is None:
            with encoders_on_device(model):
                self._encoded = encode_prompts(model, self._distinct, size=self._size)
        chosen = torch.tensor([self._places[request.text] for request in requests])
        return self._encoded[chosen.to(model.device)], self._encoded[:1]


class Looker:
    """Takes looks by one plan: always the same prompts, seeds, scorers and samples."""

    def __init__(
        self,
        plan: ProbePlan,
        requests: Mapping[str, Sequence[ImageRequest]],
        scorers: Sequence[Scorer],
        model_scorers: Sequence[ModelScorer],
        *,
        resolution: int,
        folder: ProbeFolder | Outbox | None = None,
    ) -> None:
        self.plan, self.requests, self.resolution = plan, dict(requests), resolution
        self.scorers, self.model_scorers = tuple(scorers), tuple(model_scorers)
        self.folder = folder
        self.texts = Texts(self.requests, resolution)
        self.images = sum(map(len, self.requests.values()))
        utility = plan.utility
        self._clip = ClipScore(utility.clip) if utility.clip else None
        self._features = ClipFeatures(utility.features) if utility.features else None
        self._real = self._features.of_folder(utility.reference) if self._features else None

    def look(
        self,
        model: Model,
        key: tuple[str, str, int, int],
        *,
        concept: EncodedSet | None,
        retain: EncodedSet | None,
        reference: Reference | None,
        on_image: Tell = lambda done, total: None,
    ) -> tuple[Look, Reference, tuple[Picture, ...]]:
        """Look at `model` as it is now.

        Args:
            key: model, attack, seed and step, for the record.
            concept, retain: encoded sets, for scorers of models and for drift.
            reference: of the original; None where this is the original, which becomes it.
        """
        clock, own = _Clock(), Reference()
        sets, pictures, utility = [], [], {}
        done = 0
        for kind, requests in self.requests.items():
            found = _SetSoFar(kind)
            for piece in _pieces(requests, max(_PIECE, self.plan.generation.batch)):
                with clock("generate"):
                    images = self._draw(
                        model, piece, lambda n, d=done: on_image(d + n, self.images)
                    )
                done += len(piece)
                with clock("score"):
                    self._score(found, images, piece, key, reference, own)
            sets.append(found.finished())
            pictures += found.shown
            utility |= found.figures()
            if found.features and self._real is not None:
                distance = set_distance(np.concatenate(found.features), self._real)
                utility["frechet_distance"] = distance.frechet
                utility["kernel_distance"] = distance.kernel
        with clock("score"):
            sets += self._score_model(model, concept, reference, own)
            if retain is not None and self.plan.utility.drift_samples:
                drift, own.predictions = prediction_drift(
                    model, retain, reference.predictions if reference else None,
                    samples=self.plan.utility.drift_samples,
                )  # fmt: skip
                utility["drift"] = drift
        name, attack, seed, step = key
        look = Look(
            model=name, attack=attack, seed=seed, step=step, sets=tuple(sets), utility=utility,
            seconds=clock.seconds,
        )  # fmt: skip
        return look, reference or own, tuple(pictures)

    def _draw(
        self, model: Model, piece: Sequence[ImageRequest], tell: Callable[[int], None]
    ) -> Tensor:
        """[n, 3, height, width] from −1 to 1 on the CPU; requests of one guidance go together."""
        settings = self.plan.generation
        drawn = []
        own = settings.guidance
        for guidance, group in groupby(piece, lambda r: own if r.guidance is None else r.guidance):
            part = list(group)
            conditioning, empty = self.texts.of(model, part)
            before, count = sum(map(len, drawn)), len(part)
            drawn.append(
                generate_images(
                    model, conditioning, seeds=[request.seed for request in part],
                    steps=settings.steps, guidance=guidance, height=self.resolution,
                    width=self.resolution, batch=settings.batch, negative=empty,
                    on_progress=lambda p, b=before, n=count: tell(b + n * p.step // p.total),
                ).float().cpu().clamp(-1, 1)
            )  # fmt: skip
        return torch.cat(drawn)

    def _score(
        self,
        found: _SetSoFar,
        images: Tensor,
        piece: Sequence[ImageRequest],
        key: tuple[str, str, int, int],
        reference: Reference | None,
        own: Reference,
    ) -> None:
        pixels = to_pixels(images)
        start = found.images
        prompts = [request.text for request in piece]
        # Scorers see what a file would hold, so that a kept picture scores the same again.
        seen = pixels.float() / 127.5 - 1
        scores = [scorer.score(seen, prompts) for scorer in self._scorers_of(found.kind)]
        found.add(scores, [_digest(image) for image in pixels])
        if found.kind in COMPARED:
            if reference is None:
                before = own.images.get(found.kind)
                own.images[found.kind] = pixels if before is None else torch.cat([before, pixels])
                found.distances += [0.0] * len(pixels)
            else:
                originals = reference.images[found.kind][start : start + len(pixels)]
                found.distances += image_distance(seen, originals.float() / 127.5 - 1)
        if self._clip is not None:
            found.clip += self._clip.score(seen, prompts)
        if self._features is not None and found.kind == "retain":
            found.features.append(self._features.of_images(seen))
        keep = pixels[: max(0, self.plan.pictures - start)] if self.folder else ()
        for number, image in enumerate(keep, start=start):
            name, attack, seed, step = key
            file = self.folder.save_picture(  # type: ignore[union-attr]
                image, name, attack, f"{seed}", f"{step}", found.kind, f"{number:04d}"
            )
            found.pictures.append(file)
            flagged = bool(scores) and scores[0].flagged[number - start]
            path = str(self.folder.path / file)  # type: ignore[union-attr]
            found.shown.append(Picture(path, prompts[number - start], flagged))

    def _scorers_of(self, kind: str) -> list[Scorer]:
        return [scorer for scorer in self.scorers if kind in getattr(scorer, "kinds", (kind,))]

    def _score_model(
        self, model: Model, concept: EncodedSet | None, reference: Reference | None, own: Reference
    ) -> list[SetLook]:
        if not self.model_scorers or concept is None:
            return []
        found = []
        for scorer in self.model_scorers:
            errors = scorer.errors(model, concept)
            own.errors[scorer.name] = torch.tensor(errors, dtype=torch.float64)
            base = reference.errors[scorer.name].tolist() if reference else errors
            found.append(scorer.scores(errors, base))
        return [SetLook(kind=CONCEPT, images=len(found[0].values), scores=tuple(found))]


class _SetSoFar:
    """A prompt set while it is being drawn."""

    def __init__(self, kind: str) -> None:
        self.kind, self.images = kind, 0
        self.parts: list[list[Scores]] = []
        self.digests: list[str] = []
        self.pictures: list[str] = []
        self.shown: list[Picture] = []
        self.distances: list[float] = []
        self.clip: list[float] = []
        self.features: list[np.ndarray] = []

    def add(self, scores: list[Scores], digests: list[str]) -> None:
        self.parts.append(scores)
        self.digests += digests
        self.images += len(digests)

    def finished(self) -> SetLook:
        scores = tuple(_joined(parts) for parts in zip(*self.parts, strict=True))
        return SetLook(
            kind=self.kind, images=self.images, scores=scores, digests=tuple(self.digests),
            pictures=tuple(self.pictures),
        )  # fmt: skip

    def figures(self) -> dict[str, float]:
        """Means over the set, named after its kind."""
        return {
            f"{name}_{self.kind}": sum(values) / len(values)
            for name, values in (("image_distance", self.distances), ("clip_score", self.clip))
            if values
        }


class _Clock:
    """Wall seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._started = "", 0.0

    def __call__(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._started
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + spent


def _pieces(requests: Sequence[ImageRequest], size: int) -> list[Sequence[ImageRequest]]:
    return [requests[start : start + size] for start in range(0, len(requests), size)]


def _joined(parts: Sequence[Scores]) -> Scores:
    return Scores(
        scorer=parts[0].scorer,
        values=tuple(value for part in parts for value in part.values),
        flagged=tuple(flag for part in parts for flag in part.flagged),
        labels=tuple(label for part in parts for label in part.labels),
    )


def _digest(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16]
