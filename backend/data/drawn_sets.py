"""Which pictures a plan draws where it names none. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from ..errors import DataError
from ..plan.concept import Concept
from ..plan.images import ImageSet
from .concept import near_neighbours, retain_prompts

if TYPE_CHECKING:
    from ..families import Family

RETAIN_IMAGES = 128  # synthesised where a plan gives no retain set
SYNTHESIS_BATCH = 8  # images made, and cached, together


def forget_images(
    concept: Concept, shared: ImageSet | None, family: Family | None = None
) -> ImageSet:
    """Return a concept's own images, else the `shared` ones, else a set to make from prompts.

    family: whose guidance that set is drawn with.
    """
    return concept.images or shared or _as_drawn(ImageSet(prompts=concept.prompts), family)


def shipped_retain_set(concepts: Sequence[Concept], family: Family | None = None) -> ImageSet:
    """Return shipped prompts, up to half of them near neighbours of the concepts, none naming
    a concept, because that would keep what is to be removed. family: as of `forget_images`."""
    names = [re.escape(concept.name) for concept in concepts]
    named = re.compile(rf"\b({'|'.join(names)})\b", re.IGNORECASE)
    columns = zip_longest(*(near_neighbours(concept.name) for concept in concepts))
    neighbours = [prompt for column in columns for prompt in column if prompt]
    candidates = (*neighbours[: RETAIN_IMAGES // 2], *retain_prompts())
    prompts = [prompt for prompt in candidates if not named.search(prompt)]
    if not prompts:
        raise DataError("no retain prompt is left besides the concepts: give a retain_set")
    made = ImageSet(prompts=tuple(prompts[:RETAIN_IMAGES]), images=RETAIN_IMAGES)
    return _as_drawn(made, family)


def _as_drawn(made: ImageSet, family: Family | None) -> ImageSet:
    """Return a set that no plan describes with the guidance that a family is meant for."""
    if family is None or family.guidance is None:
        return made
    return replace(made, guidance=family.guidance[0])
