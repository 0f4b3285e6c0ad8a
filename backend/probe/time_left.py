"""Seconds that a probe still takes, from what its parts were measured to cost.

A probe has parts of unequal cost: evaluations (drawing and scoring the same images each time),
trainings, whose passes of the denoiser take several times as long as those of drawing, mixing or
loading of weights, and what lies between them. Each part counts with the time that its like took,
the latest most, as the load of a machine changes. Evaluations record their seconds, so a resumed
probe knows them from the start; what an earlier session did is never divided by the time of this
one, and if evaluations take longer now than then, so do its trainings. There is no estimate until
an evaluation and, unless they matter little, a training have been measured.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from time import perf_counter

from ..plan.attack import Attack, FineTuneAttack
from .cost import ProbeCost, update_passes
from .results import Evaluation, Key
from .tasks import Task

_FADING = 0.7  # weight of a measurement beside the next one
_LATEST = 8  # measurements that count
_PART = 0.25  # of an evaluation: from here on it says how long a whole one takes
_DRAWN = 0.95  # of an evaluation whose images are all drawn: they are still to be scored
_STEPS = 3  # of a training: likewise; the first one includes the preparations
_EARLIER = 0.5  # evaluations that those of an earlier session count for, together
_GUESSED = 0.1  # of the time left, at most
_OTHER = 0.5  # how far a training by another method tells the pace of one

Sample = tuple[float, float]  # seconds, and the units that took them


class ProbeTime:
    """Measures the parts of one probe on one rank, and adds up those that are left.

    ProbeRun reports when a part begins and ends; `clock` gives the time in seconds.
    """

    def __init__(
        self,
        cost: ProbeCost,
        tasks: Sequence[Task],
        *,
        ranks: int = 1,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._cost, self._tasks, self._ranks, self._clock = cost, tuple(tasks), ranks, clock
        self._evaluations: dict[Key, Sample] = {}
        self._earlier: set[Key] = set()
        self._attacked: dict[tuple[str, str, int], Sample] = {}  # by model, attack, seed
        self._attacks: dict[str, Attack | None] = {
            task.attack.name: task.attack for task in tasks if task.attack is not None
        }
        self._opened: list[Sample] = []
        self._open: set[str] = set()
        self._opening: tuple[str, float] | None = None
        self._between: list[Sample] = []  # of a task, apart from its trainings and evaluations
        self._task: Task | None = None
        self._began = 0.0  # of the task
        self._evaluating: float | None = None  # since when
        self._evaluated = self._recorded = 0.0  # seconds of the task's evaluations
        self._drawn, self._step = 0.0, 0
        self._trained = 0.0  # seconds of training up to the last step
        self._first_step: Sample | None = None  # those of the first one, and its number
        self._siblings: set[tuple[str, int]] = set()  # attack and seed: trained once for all
        self._given = False

    def recall(self, evaluations: Collection[Evaluation]) -> None:
        """Count evaluations of an earlier session, with the seconds that they recorded."""
        self.add(evaluations)
        self._earlier |= {each.key for each in evaluations}

    def add(self, evaluations: Iterable[Evaluation]) -> None:
        """Count evaluations of this session, of any rank; not those that cost nothing."""
        for each in evaluations:
            if each.seconds and each.key not in self._evaluations:
                seconds = sum(each.seconds.get(name, 0.0) for name in ("generate", "score"))
                self._evaluations[each.key] = seconds, 1.0
                attack = self._attacks.get(each.attack)
                if attack is not None:
                    units = each.step * update_passes(attack) or 1.0
                    self._attacked[each.key[:3]] = each.seconds.get("train", 0.0), units

    def opens(self, model: str) -> None:
        self._opening = model, self._clock()

    def opened(self) -> None:
        """The model that was being opened is ready."""
        if self._opening is not None:
            model, began = self._opening
            self._opening = None
            self._open.add(model)
            self._opened.append((self._clock() - began, 1.0))

    def begins(self, task: Task) -> None:
        self._task, self._began = task, self._clock()
        self._evaluating, self._evaluated, self._recorded = None, 0.0, 0.0
        self._drawn, self._step, self._first_step = 0.0, 0, None

    def trained(self, step: int) -> None:
        """A step of the training that is under way is done."""
        self._step = step
        self._trained = self._clock() - self._began - self._evaluated
        if self._first_step is None:
            self._first_step = self._trained, float(step)

    def evaluates(self) -> None:
        """An evaluation begins."""
        self._evaluating, self._drawn = self._clock(), 0.0

    def drew(self, share: float) -> None:
        """A share of the evaluation's images is drawn."""
        self._drawn = share

    def evaluated(self, evaluation: Evaluation) -> None:
        """The evaluation is complete."""
        self.add([evaluation])
        self._recorded += self._evaluations.get(evaluation.key, (0.0, 1.0))[0]
        if self._evaluating is not None:
            self._evaluated += self._clock() - self._evaluating
        self._evaluating, self._drawn = None, 0.0

    def ends(self) -> None:
        """The task is done."""
        assert self._task is not None
        attack, spent = self._task.attack, 0.0
        if isinstance(attack, FineTuneAttack) and attack.trained_on:
            self._siblings.add((attack.name, self._task.seed))
        if attack is not None:
            key = self._task.model, attack.name, self._task.seed
            spent = self._attacked.get(key, (0.0, 1.0))[0]
        between = self._clock() - self._began - self._recorded - spent
        self._between.append((max(0.0, between), 1.0))
        self._task = None

    def left(self, done: Collection[Key]) -> float | None:
        """Return the seconds that are left of the whole probe; None until that can be said.

        done: the keys of complete evaluations.
        """
        evaluation = self._evaluation_seconds()
        if evaluation is None:
            return None
        own = others = guessed = 0.0
        unopened = set[str]()
        for task in self._tasks:
            missing = [key for key in task.keys if key not in done]
            if not missing:
                continue
            seconds, unknown = self._attack_seconds(task)
            seconds += len(missing) * evaluation + (_mean(self._between) or 0.0)
            if task is self._task:
                own = max(0.0, seconds - min(self._drawn, _DRAWN) * evaluation)
            else:
                others += seconds
                unopened |= {task.model} - self._open
            guessed += unknown
        others += len(unopened) * (_mean(self._opened) or 0.0)
        total = own + others
        self._given = self._given or guessed <= _GUESSED * total
        if not self._given:
            return None
        if self._task is self._tasks[0]:  # the other ranks wait for it
            return own + others / self._ranks
        return max(own, total / self._ranks)

    def _evaluation_seconds(self) -> float | None:
        before, now = self._mean_before(), self._evaluations_now()
        if before is not None:
            return _mean([(_EARLIER * before, _EARLIER), *now])
        if now or self._evaluating is None or self._drawn < _PART:
            return _mean(now)
        return (self._clock() - self._evaluating) / self._drawn

    def _mean_before(self) -> float | None:
        return _mean([each for key, each in self._evaluations.items() if key in self._earlier])

    def _evaluations_now(self) -> list[Sample]:
        return [each for key, each in self._evaluations.items() if key not in self._earlier]

    def _slower(self) -> float:
        """Return how many times as long as in an earlier session everything takes now."""
        before, now = self._mean_before(), self._evaluation_seconds()
        return now / before if before and now else 1.0

    def _attack_seconds(self, task: Task) -> tuple[float, float]:
        """Return the seconds of attacking that are left of a task, and how many are a guess.

        A training that was interrupted is repeated from its start.
        """
        attack, here = task.attack, task is self._task
        if attack is None or (attack.name, task.seed) in self._siblings:
            return 0.0, 0.0
        if not isinstance(attack, FineTuneAttack):
            begun = here and self._evaluating is not None
            return 0.0 if begun else self._pace(attack)[0] or 0.0, 0.0
        passes = (attack.steps - (self._step if here else 0)) * update_passes(attack)
        pace, measured = self._pace(attack)
        if pace is None:
            pace = (self._evaluation_seconds() or 0.0) / self._cost.passes_of_evaluation
        return passes * pace, passes * pace * (1 - measured)

    def _pace(self, attack: Attack) -> tuple[float | None, float]:
        """Return the seconds of a pass of a training, or of an attack without one: measured of this
        attack, else of those of its method, else of any of its kind; and how sure that is."""
        trains = isinstance(attack, FineTuneAttack)
        now = {key[:3] for key in self._evaluations if key not in self._earlier}
        before, slower = {key[:3] for key in self._earlier} - now, self._slower()
        alike = {
            name: one
            for name, one in self._attacks.items()
            if isinstance(one, FineTuneAttack) == trains
        }
        method = getattr(attack, "method", "")
        of_method = {name for name, one in alike.items() if getattr(one, "method", "") == method}
        for names, sure in (({attack.name}, 1.0), (of_method, 1.0), (set(alike), _OTHER)):
            samples = [
                (sample[0] * (slower if key in before else 1.0), sample[1])
                for key, sample in self._attacked.items()
                if key[1] in names
            ]
            task = self._task
            if task is not None and task.attack is not None and task.attack.name in names:
                samples += self._under_way(task.attack)
            if (found := _mean(samples)) is not None:
                return found, sure
        return None, 0.0

    def _under_way(self, attack: Attack) -> list[Sample]:
        """Return what the training of now has taken since its first step."""
        if not isinstance(attack, FineTuneAttack) or self._first_step is None:
            return []
        seconds, first = self._first_step
        steps = self._step - first
        if steps < _STEPS:
            return []
        return [(self._trained - seconds, steps * update_passes(attack))]


def _mean(samples: Sequence[Sample]) -> float | None:
    """Return the seconds of a unit, by the latest samples most; None without any."""
    seconds = units = 0.0
    for sample in samples[-_LATEST:]:
        seconds = seconds * _FADING + sample[0]
        units = units * _FADING + sample[1]
    return seconds / units if units else None
