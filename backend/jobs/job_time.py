"""Stages and time left of a whole hardening job, from the denoiser's passes that are left.

A job draws its example pictures and runs the stages that come first, unlearns alone (the warm-up),
then unlearns against simulated users, which takes many times longer a step; previews come in
between, and a distillation may let the original predict before it begins. Each kind of work has a
number of units and of passes a unit (a gradient counts as three: forward, and twice that back).
Kinds that have been measured count with their mean time, the others with their passes at the
seconds a pass has taken so far. So one estimate covers the whole job, also right after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..plan.images import ImageSet
from ..plan.methods import FACTS
from ..progress import Progress
from .previews import DRAWN, STAGE, STEPS

if TYPE_CHECKING:
    from ..plan.hardening import HardeningPlan

_GRADIENT = 3  # passes of one gradient: forward 1, backward 2
_SETTLED = 1.0  # seconds of measured work below which nothing is said
_PRIOR = 0.5  # units that a prediction counts for beside the measured ones
DRAW, BEFORE, PREDICT = "draw", "stages before", "predict"
PREVIEW, UNLEARN, RESIST = "preview", "unlearn", "resist"
_PACES = {"drawing": (DRAW,), "training": (BEFORE, PREDICT, UNLEARN, RESIST)}
_ORDER = (DRAW, BEFORE, PREDICT, UNLEARN, RESIST)


@dataclass(slots=True)
class Work:
    """One kind of work: units in all and done, passes a unit, seconds that went into those."""

    units: float
    passes: float
    done: float = 0.0
    measured: float = 0.0  # units whose seconds are known
    seconds: float = 0.0

    @property
    def left(self) -> float:
        return max(0.0, self.units - self.done)


class JobTime:
    """Follows the progress of one hardening job."""

    def __init__(self, plan: HardeningPlan, sets: Iterable[ImageSet], *, every: int = 0) -> None:
        """sets: the image sets that the job encodes. every: outer steps between two previews."""
        drawn = [one for one in sets if not one.folder]
        images = sum(one.images for one in drawn)
        passes = sum(
            one.images * one.sampling_steps * (2 if one.guidance > 1 else 1) for one in drawn
        )
        warm, steps = min(plan.warm_up_steps, plan.outer_steps), plan.outer_steps
        self._warm, self._every, self._total = warm if plan.fine_tunes else steps, every, steps
        from ..hardening.stages import stage_plans

        stages = {f"stage {name}": stage for name, stage in stage_plans(plan)}
        self._stages = {name: stage.outer_steps * _passes(stage) for name, stage in stages.items()}
        self._steps = {name: stage.outer_steps for name, stage in stages.items()}
        previews = 1 + steps // every + (steps % every > 0) if every else 0
        self.work = {
            DRAW: Work(images, passes / images if images else 0.0),
            PREVIEW: Work(previews, 2.0 * DRAWN * STEPS),
            BEFORE: Work(sum(self._stages.values()), 1.0),
            PREDICT: Work(_predictions(plan), 1.0),
            UNLEARN: Work(self._warm, _passes(plan)),
            RESIST: Work(steps - self._warm, _passes(plan) + _resisting(plan)),
        }
        self._sets: dict[str, int] = {}  # pictures drawn of each set
        self._drawing = False  # the pictures of now are drawn, and not read from an earlier session
        # Of each stage, and of predictions, the first report holds what an earlier session did
        self._met: set[str] = set()
        self._at: float | None = None
        self._kind = ""  # of the last report: a unit that follows other work includes its end

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(kind for kind in _ORDER if self.work[kind].units)

    def kind_of(self, progress: Progress) -> str:
        """Return the kind of work that a report is about; empty for any other."""
        if progress.stage == "synthesising":
            return DRAW
        if progress.stage == STAGE:
            return PREVIEW
        if progress.stage in self._stages:
            return BEFORE
        if progress.stage == "predicting" and self.work[PREDICT].units:
            return PREDICT
        if progress.stage != "harden":
            return ""
        last = progress.step if progress.values else progress.step + 1  # done, or at work
        return UNLEARN if last <= self._warm else RESIST

    def recall(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Count the steps of an earlier session, with the seconds that each took."""
        for record in records:
            kind = self.work[UNLEARN if record["step"] <= self._warm else RESIST]
            seconds = record.get("seconds")
            kind.done += 1
            if isinstance(seconds, int | float) and math.isfinite(seconds):
                kind.measured, kind.seconds = kind.measured + 1, kind.seconds + seconds
            if self._every and record["step"] % self._every == 0:
                self.work[PREVIEW].done += 1
        if self.work[UNLEARN].done + self.work[RESIST].done:
            for kind in (DRAW, BEFORE, PREDICT):  # they are stored with the run
                self.work[kind].done = self.work[kind].units
            self.work[PREVIEW].done += 1

    def __call__(self, progress: Progress, now: float) -> float | None:
        """Count a report at a time in seconds; return the seconds that are left, if known."""
        kind, last, begun = self.kind_of(progress), self._at, bool(self._kind)
        self._at, self._kind = now, kind
        if not kind:
            return self.left()
        work, before = self.work[kind], self.work[kind].done
        share = progress.micro_step / progress.micro_total if progress.micro_total else 0.0
        counts = True
        if kind == DRAW:
            counts, self._drawing = share > 0 or self._drawing, share > 0
            self._sets[progress.message] = progress.step
            work.done = sum(self._sets.values()) + share * _batch(progress)
        elif kind == PREVIEW:
            work.done = math.floor(work.done) + share if share < 1 else math.floor(work.done) + 1.0
        elif kind == BEFORE:
            self.work[DRAW].done = self.work[DRAW].units
            counts = progress.stage in self._met
            work.done = self._stages_done(progress, share)
        elif kind == PREDICT:
            counts = progress.stage in self._met
            work.done = work.units * progress.step / max(1, progress.total)
        else:
            for each in (DRAW, BEFORE, PREDICT):
                self.work[each].done = self.work[each].units
            whole = progress.step - (self._warm if kind == RESIST else 0)
            work.done = whole + (0.0 if progress.values else share)
        self._met.add(progress.stage)
        work.done = min(work.units, max(before, work.done))
        if last is not None and counts and begun:
            work.seconds += now - last
            work.measured += work.done - before
        return self.left()

    def _stages_done(self, progress: Progress, share: float) -> float:
        """Return the passes of the stages before, up to this report of one of them."""
        names = list(self._stages)
        before = names[: names.index(progress.stage)]
        steps = progress.step + (0.0 if progress.values else share)
        part = min(1.0, steps / self._steps[progress.stage])
        return sum(self._stages[name] for name in before) + part * self._stages[progress.stage]

    def left(self) -> float | None:
        """Return the seconds left of the whole job; None until enough has been measured."""
        known = [work for work in self.work.values() if work.measured and work.seconds]
        passes = sum(work.measured * work.passes for work in known)
        seconds = sum(work.seconds for work in known)
        if seconds < _SETTLED or not passes:
            return None
        a_pass = seconds / passes
        total = 0.0
        for work in self.work.values():
            each = (work.seconds + _PRIOR * work.passes * a_pass) / (work.measured + _PRIOR)
            total += work.left * each
        return total

    def share(self) -> float:
        """Return how much of the whole job is done, from 0 to 1, by its passes."""
        total = sum(work.units * work.passes for work in self.work.values())
        return 1 - self.passes_left() / total if total else 0.0

    def pace(self) -> dict[str, float]:
        """Return the seconds that a pass has taken, of drawing and of training, where measured.

        `plan.durations.pace_from` reads it, for the duration of later jobs.
        """
        found = {}
        for name, kinds in _PACES.items():
            works = [self.work[kind] for kind in kinds]
            seconds = sum(work.seconds for work in works)
            passes = sum(work.measured * work.passes for work in works)
            if passes and seconds >= _SETTLED:
                found[name] = seconds / passes
        return found

    def passes_left(self) -> float:
        """Return the passes of the denoiser that are left, a gradient counted as three."""
        return sum(work.left * work.passes for work in self.work.values())


def sets_of(plan: HardeningPlan) -> list[ImageSet]:
    """Return the image sets that a plan's job encodes, each once."""
    from ..data.batches import forget_images, shipped_retain_set, varied_images

    forget = [forget_images(concept, plan.forget_set) for concept in plan.concepts]
    varied = varied_images(plan)
    sets = [*forget, plan.retain_set or shipped_retain_set(plan.concepts)]
    return list(dict.fromkeys(sets if varied is None else [*sets, varied]))


def _passes(plan: HardeningPlan) -> float:
    """Passes of a step of a plan's method, apart from simulated users.

    Distilling: the gradient, and the original's prediction unless it was made before. Erasing:
    passes over the concept's images and over the others. The rest: the gradients at θ, of the
    concept, and of what stays with its target.
    """
    facts = FACTS[plan.method]
    if facts.distils:
        return (_GRADIENT + (0 if _stores(plan) else 1)) * plan.distil.batch
    if facts.erases:
        return 2 * plan.erase.samples * (_GRADIENT if plan.erase.how == "fisher" else 1)
    return _GRADIENT * plan.forget_batch + (_GRADIENT + 1) * plan.retain_batch


def _predictions(plan: HardeningPlan) -> int:
    """Count the predictions that the original makes before the plan's own method begins."""
    if not _stores(plan):
        return 0
    batches = math.ceil(plan.distil.stored_draws / plan.distil.batch)
    return min(batches, plan.outer_steps) * plan.distil.batch


def _stores(plan: HardeningPlan) -> bool:
    """Return True if the original predicts before the plan's own method begins."""
    return FACTS[plan.method].distils and plan.distil.stored_draws > 0


def _resisting(plan: HardeningPlan) -> float:
    """Passes that the simulated users of a step add: their training, then the gradient at θ*."""
    if not plan.fine_tunes:
        return 0.0
    if plan.regulator.enabled:
        steps = (plan.regulator.min_steps + plan.regulator.max_steps) / 2
    else:
        steps = sum(user.steps for user in plan.fine_tunes) / len(plan.fine_tunes)
    batch = sum(user.batch for user in plan.fine_tunes) / len(plan.fine_tunes)
    solve = 0.0
    if plan.solver.method != "first_order":
        solve = plan.solver.iterations * 2 * _GRADIENT * batch
    training = _GRADIENT * (steps * batch + plan.forget_batch)
    return plan.configurations_per_step * (training + solve)


def _batch(progress: Progress) -> float:
    """Pictures that are drawn at a time, of which a micro-step is a share."""
    from ..data.latents import SYNTHESIS_BATCH

    return float(min(SYNTHESIS_BATCH, progress.total - progress.step))
