"""Scores of one prompt set, collected while its images are drawn piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..progress import Picture
from .results import Scores, SetEvaluation
from .utility_figures import CLIP_SCORE, IMAGE_DISTANCE


class SetScores:
    """Scores and figures of a prompt set so far.

    shown: kept pictures, for progress. distances, clip: one figure per image. features: of each
    piece, [images, width].
    """

    def __init__(self, kind: str) -> None:
        self.kind, self.images = kind, 0
        self.pieces: list[list[Scores]] = []
        self.digests: list[str] = []
        self.pictures: list[str] = []
        self.shown: list[Picture] = []
        self.distances: list[float] = []
        self.clip: list[float] = []
        self.features: list[np.ndarray] = []

    def add(self, scores: list[Scores], digests: list[str]) -> None:
        """Add one piece: its scores by each scorer, and a digest per image."""
        self.pieces.append(scores)
        self.digests += digests
        self.images += len(digests)

    def keep(self, place: int, file: str, shown: Picture) -> None:
        """Note the file of one image; images before it that were not kept have an empty name."""
        self.pictures += [""] * (place - len(self.pictures)) + [file]
        self.shown.append(shown)

    def finished(self) -> SetEvaluation:
        scores = tuple(_joined(pieces) for pieces in zip(*self.pieces, strict=True))
        return SetEvaluation(
            kind=self.kind, images=self.images, scores=scores, digests=tuple(self.digests),
            pictures=tuple(self.pictures),
        )  # fmt: skip

    def figures(self) -> dict[str, float]:
        """Return the mean over the set of each utility figure that was computed, by its key."""
        return {
            figure.key_of(self.kind): sum(values) / len(values)
            for figure, values in ((IMAGE_DISTANCE, self.distances), (CLIP_SCORE, self.clip))
            if values
        }


def _joined(parts: Sequence[Scores]) -> Scores:
    return Scores(
        scorer=parts[0].scorer,
        values=tuple(value for part in parts for value in part.values),
        flagged=tuple(flag for part in parts for flag in part.flagged),
        labels=tuple(label for part in parts for label in part.labels),
    )
