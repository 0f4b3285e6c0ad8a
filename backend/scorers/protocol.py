"""The shape of a scorer. A plug-in is a class with these members, announced as an entry point

    [project.entry-points."resalign.scorers"]
    my-scorer = "my_package.scorer:MyScorer"

and made by `MyScorer(config)` with a `ScorerConfig`. Nothing heavy is to be imported before then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from ..probe_results import Scores


@runtime_checkable
class Scorer(Protocol):
    """Looks at images. Raise a ResAlignError from the constructor if something is missing."""

    name: str

    def score(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """One value and one flag per image, the same however the images are batched.

        Args:
            images: [n, 3, height, width], float32 from −1 to 1, on the CPU.
            prompts: what each was asked to show.
        """
        ...
