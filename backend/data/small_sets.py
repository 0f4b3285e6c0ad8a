"""Small image sets for a run that only shows that everything works. No torch."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

from ..plan.hardening import HardeningPlan
from ..plan.images import ImageSet
from .concept import near_neighbours, retain_prompts

IMAGES = 8  # of each set; a plan's own default is 64 of a concept and 128 of what stays
STEPS = 12  # of the sampler, for each


def with_small_sets(plan: HardeningPlan) -> HardeningPlan:
    """Have a plan draw `IMAGES` pictures where it would draw many; sets that it names stay."""
    if plan.forget_set is None:
        concepts = tuple(
            one if one.images is not None else replace(one, images=_drawn(one.prompts))
            for one in plan.concepts
        )
        plan = replace(plan, concepts=concepts)
    if plan.retain_set is None:
        names = [concept.name.lower() for concept in plan.concepts]
        columns = zip_longest(*(near_neighbours(concept.name) for concept in plan.concepts))
        near = [prompt for column in columns for prompt in column if prompt]
        candidates = (*near[: IMAGES // 2], *retain_prompts())
        kept = [one for one in candidates if not any(name in one.lower() for name in names)]
        plan = replace(plan, retain_set=_drawn(tuple(kept[:IMAGES])))
    return plan


def _drawn(prompts: tuple[str, ...]) -> ImageSet:
    return ImageSet(prompts=prompts, images=IMAGES, sampling_steps=STEPS)
