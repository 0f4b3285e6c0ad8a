"""The share of a probe's work that is done, by what each evaluation costs.

Evaluations differ: one follows 400 updates of all weights, another a merge. Cost is counted in
passes of the denoiser for one image: an update has three for each image of its batch (forward 1,
backward 2), a drawn image one for each sampler step, twice with guidance. Evaluations of every
model cost the same. The images that attacks train on count too, which the original draws first.
No torch: front ends state times before a probe begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..data.drawn_sets import SYNTHESIS_BATCH, forget_images, shipped_retain_set
from ..plan.attack import Attack, FineTuneAttack
from ..plan.images import ImageSet
from ..plan.probe import ProbePlan
from ..progress import Progress
from .prompts import ImageRequest, plan_requests
from .results import Key
from .tasks import Task, plan_tasks

_GRADIENT = 3  # passes of an update for one image


class ProbeCost:
    """Costs of a probe's evaluations by their keys."""

    def __init__(
        self,
        plan: ProbePlan,
        requests: Mapping[str, Sequence[ImageRequest]],
        tasks: Sequence[Task],
        sets: Sequence[ImageSet] = (),
    ) -> None:
        """sets: what attacks train on; those without a folder are drawn."""
        drawn = [one for one in dict.fromkeys(sets) if not one.folder]
        self._images = sum(one.images for one in drawn)
        self.preparing = sum(
            one.images * one.sampling_steps * (2 if one.guidance > 1 else 1) for one in drawn
        )
        self._prepared: dict[str, float] = {}  # images drawn of each set
        passes = plan.generation.steps * (2 if plan.generation.guidance > 1 else 1)
        drawing = float(passes * sum(map(len, requests.values())))
        self.passes_of_evaluation = max(1.0, drawing + plan.utility.drift_samples)
        self._training: dict[Key, float] = {}
        self._before: dict[Key, int] = {}  # the attack's step at which the training of a key begins
        for task in tasks:
            done = 0
            for key in task.keys:
                step = key[3]
                self._training[key] = (step - done) * update_passes(task.attack)
                self._before[key], done = done, step
        self.training = sum(self._training.values())
        self.drawing = self.preparing + len(self._training) * self.passes_of_evaluation
        self._total = self.training + self.drawing

    def share(
        self, done: Iterable[Key], now: Key | None = None, *, step: int = 0, drawn: float = 0.0
    ) -> float:
        """Return the share of the work that is done, from 0 to 1.

        Args:
            done: the keys of complete evaluations.
            now: key at work, of a training at its `step`, or of an evaluation of which the share
                `drawn` is drawn.
        """
        done = set(done)
        found = self.preparing + sum(
            self._training.get(key, 0.0) + self.passes_of_evaluation for key in done
        )
        if now is not None and (key := self._reached(now, step)) not in done:
            span = max(1, key[3] - self._before[key])
            trained = 1.0 if drawn else (step - self._before[key]) / span
            found += (
                self._training[key] * min(1.0, max(0.0, trained))
                + self.passes_of_evaluation * drawn
            )
        return min(1.0, found / self._total) if self._total else 1.0

    def share_prepared(self, progress: Progress, done: Iterable[Key] = ()) -> float:
        """Return the share of the work done while the original draws what attacks train on.

        done: the keys of evaluations that an earlier session completed.
        """
        if earlier := set(done):  # the images were drawn before them
            return self.share(earlier)
        if progress.stage == "synthesising":
            part = progress.micro_step / progress.micro_total if progress.micro_total else 0.0
            at_work = min(SYNTHESIS_BATCH, progress.total - progress.step)
            self._prepared[progress.message] = progress.step + part * at_work
        images = min(sum(self._prepared.values()), self._images)
        drawn = self.preparing * images / self._images if self._images else 0.0
        return drawn / self._total if self._total else 1.0

    def _reached(self, now: Key, step: int) -> Key:
        """Return the evaluation towards which a training at a step is under way."""
        if now in self._training:
            return now
        later = [key for key in self._training if key[:3] == now[:3] and key[3] >= step]
        return min(later, key=lambda key: key[3], default=next(iter(self._training)))


def plan_cost(plan: ProbePlan, models: int = 2) -> ProbeCost:
    """Return the costs of a probe of so many models."""
    tasks = plan_tasks(plan, [str(number) for number in range(models)])
    return ProbeCost(plan, plan_requests(plan), tasks, image_sets(plan))


def image_sets(plan: ProbePlan) -> list[ImageSet]:
    """Return the forget and retain sets that every probe of a plan encodes."""
    forget = [forget_images(concept, plan.forget_set) for concept in plan.concepts]
    return [*forget, plan.retain_set or shipped_retain_set(plan.concepts)]


def update_passes(attack: Attack | None) -> float:
    """Return the passes of one update of an attack; 0 for one that does not train."""
    if not isinstance(attack, FineTuneAttack):
        return 0.0
    images = attack.batch * attack.accumulate * (2 if attack.prior_data else 1)
    return float(_GRADIENT * images)
