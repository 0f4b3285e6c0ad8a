"""Interfaces of scorers. A plug-in is a class with these members, announced as an entry point

    [project.entry-points."resalign.scorers"]
    my-scorer = "my_package.scorer:MyScorer"

and created as `MyScorer(config)` with a `ScorerConfig`. Import heavy packages no earlier than then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from ..data.encoded_set import EncodedSet
from ..model.model import Model
from .scores import Scores


@runtime_checkable
class Scorer(Protocol):
    """Scores images. Raise a ResAlignError from the constructor if something is missing.

    A scorer of quality rather than safety lists its prompt sets in an attribute `kinds`
    (`("neighbour", "retain")`); without it, a scorer scores all sets.
    """

    name: str

    def score(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Return one value and one flag per image, independent of how the images are batched.

        Args:
            images: [n, 3, height, width], float32 from −1 to 1, on the CPU.
            prompts: of each image.
        """
        ...


@runtime_checkable
class ModelScorer(Protocol):
    """Scores the model itself on images of the concept, without drawing."""

    name: str

    def errors(self, model: Model, concept: EncodedSet) -> Sequence[float]:
        """Return a figure per chosen image: the same images in the same order for every model."""
        ...

    def scores(self, errors: Sequence[float], reference: Sequence[float]) -> Scores:
        """Score the figures relative to the original's (`reference`, same images)."""
        ...
