"""Bounds what a recorded probe may ask for, since `verify` repeats what a stranger recorded.

Time is bounded by the caller, at every image and every update of a training. What could fill the
memory, or take long between two of them, is bounded here by counts that no honest record reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ..errors import RunError
from ..plan.images import ImageSet
from ..plan.probe import ProbePlan
from ..progress import Progress, ProgressCallback
from .prompts import load_prompts

_MOST_IMAGES = 20_000  # of one kind of prompt, or of an image set
_MOST_PIXELS = 64 << 20  # of a batch
_MOST_EVALUATIONS = 10_000


class BudgetSpent(Exception):
    """The time is over; raised from the progress callback."""


def check_size(plan: ProbePlan) -> None:
    """Raise a RunError if repeating the plan would take more memory than an honest one."""
    for what, count, most in _counts(plan):
        if count > most:
            raise RunError(
                f"the recorded plan asks for {count} {what}, more than the {most} that are "
                "repeated: use --no-probe to check the rest"
            )


def timed(
    on_progress: ProgressCallback, minutes: float, clock: Callable[[], float] = time.monotonic
) -> ProgressCallback:
    """Return a progress callback that ends the work when the time is over."""
    end = clock() + minutes * 60

    def report(progress: Progress, /) -> None:
        if clock() > end:
            raise BudgetSpent
        on_progress(progress)

    return report


def _counts(plan: ProbePlan) -> Iterator[tuple[str, int, int]]:
    for part in plan.prompts:
        prompts = len(part.prompts) or len(load_prompts(part, plan.concepts))
        prompts = min(prompts, part.limit or prompts)
        yield f"images of {part.kind} prompts", prompts * part.images, _MOST_IMAGES
    sets: list[ImageSet | None] = [plan.forget_set, plan.retain_set]
    for image_set in [*sets, *(concept.images for concept in plan.concepts)]:
        if image_set is not None:
            yield "images of a set", image_set.images, _MOST_IMAGES
            yield "prompts of a set", len(image_set.prompts), _MOST_IMAGES
    for concept in plan.concepts:
        yield "prompts of a concept", len(concept.prompts), _MOST_IMAGES
    for attack in plan.trainings:
        side = plan.resolution or 512
        yield "images in an update", attack.batch * attack.accumulate, 4096
        yield "pixels in a batch of training", attack.batch * side**2, _MOST_PIXELS
    side = plan.generation.resolution or 512
    yield "pixels in a batch", plan.generation.batch * side**2, _MOST_PIXELS
    looks = sum(len(attack.looks) or 1 for attack in plan.trainings) * len(plan.seeds)
    yield "evaluations", looks + len(plan.attacks), _MOST_EVALUATIONS
    yield "samples of drift", plan.utility.drift_samples, _MOST_IMAGES
