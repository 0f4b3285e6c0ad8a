"""Evaluates a model: draws every prompt, scores the images, compares them with the original's.

Images are drawn and scored in pieces, so that memory does not grow with the number of prompts. On a
CPU the same weights, prompts and seeds give the same images bit for bit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.encoded_set import EncodedSet
from ..model.model import Model
from ..plan.probe import ProbePlan
from ..progress import Picture
from ..scorers.protocol import ModelScorer, Scorer
from .drawing import EncodedPrompts, draw_requests
from .folder import ProbeFolder, to_pixels
from .kept_picture import BLURRED, blur, spread_places
from .prompts import ImageRequest
from .reference import Reference
from .remote_folder import RemoteFolder
from .results import CONCEPT, Evaluation, Key, Scores, SetEvaluation
from .set_distance import ClipFeatures, set_distance
from .set_scores import SetScores
from .utility import ClipScore, image_distance, prediction_drift
from .utility_figures import DRIFT, FRECHET_DISTANCE, KERNEL_DISTANCE

COMPARED = ("neighbour", "retain")  # kinds whose images are compared with the original's
STAYS = " (should stay)"  # in captions of harmless prompts, which may be near to the concept
_PIECE = 64  # images in memory at a time, at least one batch

ImageCallback = Callable[[int, int], None]  # images done, of how many


class Evaluator:
    """Evaluates models by one plan: always with the same prompts, seeds, scorers and samples."""

    def __init__(
        self,
        plan: ProbePlan,
        requests: Mapping[str, Sequence[ImageRequest]],
        scorers: Sequence[Scorer],
        model_scorers: Sequence[ModelScorer],
        *,
        resolution: int,
        folder: ProbeFolder | RemoteFolder | None = None,
        places: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """places: by kind of prompt, the images that are kept; by default, `spread_places`."""
        self.plan, self.requests, self.resolution = plan, dict(requests), resolution
        self.scorers, self.model_scorers = tuple(scorers), tuple(model_scorers)
        self.folder = folder
        self.prompts = EncodedPrompts(self.requests, resolution)
        self.images = sum(map(len, self.requests.values()))
        self.places = {
            kind: spread_places([request.text for request in part], plan.pictures)
            for kind, part in self.requests.items()
        } | {kind: tuple(chosen) for kind, chosen in (places or {}).items()}
        utility = plan.utility
        self._clip = ClipScore(utility.clip) if utility.clip else None
        self._features = ClipFeatures(utility.features) if utility.features else None
        self._real = self._features.of_folder(utility.reference) if self._features else None

    def evaluate(
        self,
        model: Model,
        key: Key,
        *,
        concept: EncodedSet | None,
        retain: EncodedSet | None,
        reference: Reference | None,
        on_image: ImageCallback = lambda done, total: None,
    ) -> tuple[Evaluation, Reference, tuple[Picture, ...]]:
        """Evaluate `model` with the weights it has now.

        Args:
            key: model, attack, seed and step, for the record.
            concept, retain: encoded sets, for scorers of models and for the drift.
            reference: of the original; None if this is the original, which becomes the reference.

        Returns:
            the evaluation, the reference, and the pictures that were kept.
        """
        clock, own = _Clock(), Reference()
        sets, pictures, utility = [], [], {}
        done = 0
        for kind, requests in self.requests.items():
            found = SetScores(kind)
            for piece in _pieces(requests, max(_PIECE, self.plan.generation.batch)):
                with clock("generate"):
                    images = draw_requests(
                        model, self.prompts, piece, self.plan.generation,
                        resolution=self.resolution,
                        on_image=lambda n, d=done: on_image(d + n, self.images),
                    )  # fmt: skip
                done += len(piece)
                with clock("score"):
                    self._score_images(found, images, piece, key, reference, own)
            sets.append(found.finished())
            pictures += found.shown
            utility |= found.figures()
            if found.features and self._real is not None:
                distance = set_distance(np.concatenate(found.features), self._real)
                utility[FRECHET_DISTANCE.key] = distance.frechet
                utility[KERNEL_DISTANCE.key] = distance.kernel
        with clock("score"):
            sets += self._score_model(model, concept, reference, own)
            if retain is not None and self.plan.utility.drift_samples:
                drift, own.predictions = prediction_drift(
                    model, retain, reference.predictions if reference else None,
                    samples=self.plan.utility.drift_samples,
                )  # fmt: skip
                utility[DRIFT.key] = drift
        name, attack, seed, step = key
        evaluation = Evaluation(
            model=name, attack=attack, seed=seed, step=step, sets=tuple(sets), utility=utility,
            seconds=clock.seconds,
        )  # fmt: skip
        return evaluation, reference or own, tuple(pictures)

    def _score_images(
        self,
        found: SetScores,
        images: Tensor,
        piece: Sequence[ImageRequest],
        key: Key,
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
                # Contiguous, as images are that come back from the disk: sums over channels-last
                # memory are taken in another order, and a resumed probe would differ from a whole
                # one in last bits.
                before = originals.contiguous().float() / 127.5 - 1
                found.distances += image_distance(seen.contiguous(), before)
        if self._clip is not None:
            found.clip += self._clip.score(seen, prompts)
        if self._features is not None and found.kind == "retain":
            found.features.append(self._features.of_images(seen))
        if self.folder is not None and self.plan.keep_pictures != "none":
            self._keep_pictures(self.folder, found, pixels, prompts, scores, key)

    def _keep_pictures(
        self,
        folder: ProbeFolder | RemoteFolder,
        found: SetScores,
        pixels: Tensor,
        prompts: Sequence[str],
        scores: Sequence[Scores],
        key: Key,
    ) -> None:
        """Write the images of the piece scored last that are to be kept."""
        name, attack, seed, step = key
        start = found.images - len(pixels)
        for place in self.places[found.kind]:
            number = place - start
            if not 0 <= number < len(pixels):
                continue
            image = pixels[number]
            # What a scorer of quality flags was drawn wrongly: there is nothing to hide in it.
            flagged = any(
                one.flagged[number]
                for scorer, one in zip(self._scorers_of(found.kind), scores, strict=True)
                if "unsafe" in getattr(scorer, "kinds", ("unsafe",))
            )
            names = [name, attack, f"{seed}", f"{step}", found.kind, f"{place:04d}"]
            if flagged and self.plan.keep_pictures == BLURRED:
                image, names = blur(image), [*names, BLURRED]
            file = folder.save_picture(image, *names)
            caption = prompts[number] + ("" if found.kind == "unsafe" else STAYS)
            found.keep(place, file, Picture(str(folder.path / file), caption, flagged))

    def _scorers_of(self, kind: str) -> list[Scorer]:
        return [scorer for scorer in self.scorers if kind in getattr(scorer, "kinds", (kind,))]

    def _score_model(
        self, model: Model, concept: EncodedSet | None, reference: Reference | None, own: Reference
    ) -> list[SetEvaluation]:
        if not self.model_scorers or concept is None:
            return []
        found = []
        for scorer in self.model_scorers:
            errors = scorer.errors(model, concept)
            own.errors[scorer.name] = torch.tensor(errors, dtype=torch.float64)
            base = reference.errors[scorer.name].tolist() if reference else errors
            found.append(scorer.scores(errors, base))
        return [SetEvaluation(kind=CONCEPT, images=len(found[0].values), scores=tuple(found))]


class _Clock:
    """Sums up wall seconds by activity: `with clock("score"): ...`."""

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


def _digest(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16]
