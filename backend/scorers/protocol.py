"""The shapes of scorers. A plug-in is a class with these members, announced as an entry point

    [project.entry-points."resalign.scorers"]
    my-scorer = "my_package.scorer:MyScorer"

and made by `MyScorer(config)` with a `ScorerConfig`. Nothing heavy is to be imported before then.
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
    """Looks at images. Raise a ResAlignError from the constructor if something is missing.

    One that judges quality, not safety, says with an attribute `kinds` which prompt sets it looks
    at (`("neighbour", "retain")`); without it, it looks at all.
    """

    name: str

    def score(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """One value and one flag per image, the same however the images are batched.

        Args:
            images: [n, 3, height, width], float32 from −1 to 1, on the CPU.
            prompts: what each was asked to show.
        """
        ...


@runtime_checkable
class ModelScorer(Protocol):
    """Looks at the model itself, on images of the concept; it draws nothing."""

    name: str

    def errors(self, model: Model, concept: EncodedSet) -> Sequence[float]:
        """One figure per image looked at, the same images in the same order for every model."""
        ...

    def scores(self, errors: Sequence[float], reference: Sequence[float]) -> Scores:
        """What the figures say beside the original's (`reference`, same images)."""
        ...
