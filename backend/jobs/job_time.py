"""Stages and time left of a whole hardening job, from the denoiser's passes that are left.

A job draws its example pictures and runs the stages that come first, unlearns alone (the warm-up),
then unlearns against simulated users, which takes many times longer a step; previews come in
between, and a distillation may let the original predict before it begins. Each kind of work has a
number of units and of passes a unit (a gradient counts as three: forward, and twice that back).
A kind that has been measured counts with the time of its latest units, as the load of a machine
changes, and any other with its passes at the pace of its like: drawing by drawing, training by
training. So one estimate covers the whole job, also right after a resume.
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
_LATEST = 6.0  # units, or an eighth of a kind where that is more, that count most
_UNFINISHED = 0.97  # of a step that has taken as long as a step does, and is not over
DRAW, BEFORE, PREDICT = "draw", "stages before", "predict"
PREVIEW, UNLEARN, RESIST = "preview", "unlearn", "resist"
_PACES = {"drawing": (DRAW,), "training": (BEFORE, PREDICT, UNLEARN, RESIST)}
_LIKE = ((DRAW, PREVIEW), (BEFORE, PREDICT, UNLEARN, RESIST))
_STEPPING = {PREVIEW, UNLEARN, RESIST}  # follow each other without anything between them
_ORDER = (DRAW, BEFORE, PREDICT, UNLEARN, RESIST)
_ASIDE = ("encoding", "checking images", "hash")  # stages that no passes tell of


@dataclass(slots=True)
class Work:
    """One kind of work: units in all and done, passes a unit, seconds that went into those."""

    units: float
    passes: float
    done: float = 0.0
    measured: float = 0.0  # units whose seconds are known
    seconds: float = 0.0
    latest: tuple[float, float] = (0.0, 0.0)  # measured and seconds, the latest most

    @property
    def left(self) -> float:
        return max(0.0, self.units - self.done)

    def add(self, units: float, seconds: float) -> None:
        """Count a measurement."""
        self.measured, self.seconds = self.measured + units, self.seconds + seconds
        kept = math.exp(-units / max(_LATEST, self.units / 8))
        self.latest = self.latest[0] * kept + units, self.latest[1] * kept + seconds

    def each(self, a_pass: float) -> float:
        """Return the seconds of a unit; what is not measured of a first one is predicted."""
        units, seconds = self.latest
        if self.measured >= 1:
            return seconds / units
        return seconds + (1 - self.measured) * self.passes * a_pass


class JobTime:
    """Follows the progress of one hardening job."""

    def __init__(self, plan: HardeningPlan, sets: Iterable[ImageSet], *, every: int = 0) -> None:
        """sets: the image sets that the job encodes. every: outer steps between two previews."""
        drawn = [one for one in sets if not one.folder]
        images = sum(one.images for one in drawn)
        passes = sum(one.images * _passes_of_picture(one) for one in drawn)
        self._drawn = drawn
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
        self._sets: dict[str, float] = {}  # mean pictures drawn of each set
        self._drawing = False  # the pictures of now are drawn, and not read from an earlier session
        # Of each stage, and of predictions, the first report holds what an earlier session did
        self._met: set[str] = set()
        self._at: float | None = None
        self._kind = ""  # of the last report
        self._spent, self._whole = 0.0, False  # seconds of the step at work; whether that is all
        self._share: float | None = None  # that was told last
        self._aside: tuple[str, float, int] = ("", 0.0, 0)  # stage, since when, from which step
        self._aside_left = 0.0

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
                kind.add(1, seconds)
            if self._every and record["step"] % self._every == 0:
                self.work[PREVIEW].done += 1
        if self.work[UNLEARN].done + self.work[RESIST].done:
            for kind in (DRAW, BEFORE, PREDICT):  # they are stored with the run
                self.work[kind].done = self.work[kind].units
            self.work[PREVIEW].done += 1

    def __call__(self, progress: Progress, now: float) -> float | None:
        """Count a report at a time in seconds; return the seconds that are left, if known."""
        kind, last, before_it = self.kind_of(progress), self._at, self._kind
        self._at, self._kind = now, kind
        self._beside(progress, now)
        if kind:
            self._count(kind, progress, now, last, before_it)
        self._move(now - last if last is not None else 0.0)
        return self.left()

    def _beside(self, progress: Progress, now: float) -> None:
        """Measure a stage that no passes tell of, while it lasts."""
        stage, began, first = self._aside
        if progress.stage not in _ASIDE:
            self._aside, self._aside_left = ("", 0.0, 0), 0.0
        elif progress.stage != stage or progress.step < first:
            self._aside, self._aside_left = (progress.stage, now, progress.step), 0.0
        elif progress.step > first:
            each = (now - began) / (progress.step - first)
            self._aside_left = each * max(0, progress.total - progress.step)

    def _count(
        self, kind: str, progress: Progress, now: float, last: float | None, before_it: str
    ) -> None:
        """Count a report of one of the kinds. before_it: the kind of the report before."""
        work, before = self.work[kind], self.work[kind].done
        share = progress.micro_step / progress.micro_total if progress.micro_total else 0.0
        counts = True
        if kind == DRAW:
            counts, self._drawing = share > 0 or self._drawing, share > 0
            drawn = progress.step + share * _batch(progress)
            self._sets[progress.message] = drawn * self._weight(progress)
            work.done = sum(self._sets.values())
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
            counts, own = False, before_it in _STEPPING
            seconds = now - last if last is not None and own else None
            self._step(work, progress, seconds)
        self._met.add(progress.stage)
        work.done = min(work.units, max(before, work.done))
        # What lies before the first unit of a kind, such as loading, is not its time
        follows = kind == before_it or {kind, before_it} <= _STEPPING
        if last is not None and counts and follows:
            work.add(work.done - before, now - last)

    def _step(self, work: Work, progress: Progress, seconds: float | None) -> None:
        """Count a report of an outer step. seconds: of it since the last report, if all are its.

        Its inner steps say little of how far it is, as several users may follow each other and
        gradients come before and after: it is as far as its time is of a step's.
        """
        if not (progress.values or progress.micro_step):  # it begins
            self._spent, self._whole = 0.0, True
            return
        self._whole, self._spent = seconds is not None and self._whole, self._spent + (seconds or 0)
        first = self._warm if work is self.work[RESIST] else 0
        work.done = progress.step - first
        if progress.values:
            if self._whole:
                work.add(1, self._spent)
            self._spent, self._whole = 0.0, True
        elif each := work.each(self._pace_of(work) or 0.0):
            work.done += min(_UNFINISHED, self._spent / each)

    def _weight(self, progress: Progress) -> float:
        """Return the passes of a picture of the set that is drawn, in those of the mean one."""
        like = [
            one for one in self._drawn
            if one.images == progress.total
            and progress.micro_total in (0, one.sampling_steps)
        ]  # fmt: skip
        mean = self.work[DRAW].passes
        return _passes_of_picture(like[0]) / mean if like and mean else 1.0

    def _stages_done(self, progress: Progress, share: float) -> float:
        """Return the passes of the stages before, up to this report of one of them."""
        names = list(self._stages)
        before = names[: names.index(progress.stage)]
        steps = progress.step + (0.0 if progress.values else share)
        part = min(1.0, steps / self._steps[progress.stage])
        return sum(self._stages[name] for name in before) + part * self._stages[progress.stage]

    def left(self) -> float | None:
        """Return the seconds left of the whole job; None until enough has been measured."""
        works = self.work.values()
        if sum(work.seconds for work in works) < _SETTLED or _pace(works) is None:
            return None
        return self._aside_left + sum(
            work.left * work.each(self._pace_of(work) or 0.0) for work in works
        )

    def _pace_of(self, work: Work) -> float | None:
        """Return the seconds of a pass of this kind's like, else of any kind."""
        alike = next(
            [self.work[kind] for kind in kinds]
            for kinds in _LIKE
            if any(self.work[kind] is work for kind in kinds)
        )
        return _pace(alike) or _pace(self.work.values())

    def share(self) -> float:
        """Return how much of the whole job is done, from 0 to 1, which never falls.

        By its passes until the time left is known, and from then on by that time.
        """
        return self._by_passes() if self._share is None else self._share

    def _by_passes(self) -> float:
        total = sum(work.units * work.passes for work in self.work.values())
        return 1 - self.passes_left() / total if total else 0.0

    def _move(self, seconds: float) -> None:
        """Move the share on by the seconds that went by since the last report."""
        left, share = self.left(), self.share()
        if left is None:
            return
        if left < 1e-6:
            self._share = 1.0
            return
        gone = min(seconds, left)
        self._share = share + (1 - share) * gone / (gone + left)

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
    from ..data.batches import varied_images
    from ..data.drawn_sets import forget_images, shipped_retain_set

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


def _pace(works: Iterable[Work]) -> float | None:
    """Return the latest seconds of a pass of these kinds; None without a measurement."""
    works = list(works)
    passes = sum(work.latest[0] * work.passes for work in works)
    return sum(work.latest[1] for work in works) / passes if passes else None


def _passes_of_picture(one: ImageSet) -> int:
    return one.sampling_steps * (2 if one.guidance > 1 else 1)


def _batch(progress: Progress) -> float:
    """Pictures that are drawn at a time, of which a micro-step is a share."""
    if progress.at_once:
        return float(progress.at_once)
    from ..data.drawn_sets import SYNTHESIS_BATCH

    return float(min(SYNTHESIS_BATCH, progress.total - progress.step))
