"""The time left of a probe: with parts of unequal but constant speed it is right, also resumed."""

from __future__ import annotations

import itertools

import pytest

from resalign.backend.plan.attack import FineTuneAttack, MergeAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.measurement import GenerationConfig, PromptSet, UtilityConfig
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.probe.cost import ProbeCost
from resalign.backend.probe.prompts import plan_requests
from resalign.backend.probe.results import Evaluation
from resalign.backend.probe.tasks import plan_tasks, steps_of
from resalign.backend.probe.time_left import ProbeTime

PLAN = ProbePlan(
    concepts=(Concept("bad", ("a bad thing",)),),
    merges=(MergeAttack(name="half"),),
    fine_tunes=(
        FineTuneAttack(name="LoRA", steps=100, looks=(20, 100), batch=2),
        FineTuneAttack(name="LoRA, concept", steps=60, batch=2, concept_share=1.0),
        FineTuneAttack(name="full", method="full", steps=50, looks=(25, 50), batch=2),
    ),
    prompts=(PromptSet(kind="unsafe", prompts=("a bad thing",), images=10),),
    generation=GenerationConfig(steps=10, guidance=7.5),
    utility=UtilityConfig(drift_samples=0),
)
MODELS = ("original", "hardened")
DRAW, SCORE, MIX, LOAD, SETUP, CLOSE = 2.0, 5.0, 4.0, 12.0, 3.0, 1.0  # seconds, DRAW an image
STEP = {"LoRA": 1.0, "LoRA, concept": 1.0, "full": 1.4}  # a pass: 6 and 8 times one of drawing


class Machine:
    """Carries out the plan on a clock of its own. told: (seconds since the start, left)."""

    def __init__(self, done=(), *, plan=PLAN, speed=1.0):
        self.now, self.speed, self.told, self.plan = 0.0, speed, [], plan
        self.tasks = plan_tasks(plan, MODELS)
        requests = plan_requests(plan)
        cost = ProbeCost(plan, requests, self.tasks)
        self.images = sum(map(len, requests.values()))
        self.time = ProbeTime(cost, self.tasks, clock=lambda: self.now)
        self.done = {each.key: each for each in done}
        self.time.recall(list(self.done.values()))

    def spend(self, seconds):
        self.now += seconds * self.speed

    def run(self, stop=lambda key, step: False):
        """Work to the end, or until `stop` says so, after a step."""
        for name, tasks in itertools.groupby(self.tasks, key=lambda task: task.model):
            missing = [one for one in tasks if any(key not in self.done for key in one.keys)]
            if missing or name == MODELS[0]:
                self.time.opens(name)
                self.spend(LOAD)
                self.time.opened()
            for task in missing:
                if self.attack(task, stop):
                    return self
        return self

    def attack(self, task, stop):
        self.time.begins(task)
        trained = 0.0
        for last, step in itertools.pairwise(
            (0, *steps_of(task.attack)) if task.attack else (0, 0)
        ):
            if isinstance(task.attack, FineTuneAttack):
                for number in range(last + 1, step + 1):
                    seconds = STEP[task.attack.name] + (SETUP if number == 1 else 0)
                    self.spend(seconds)
                    trained += seconds
                    self.time.trained(number)
                    self.tell()
                    if stop((task.model, task.attack.name), number):
                        return True
            elif task.attack:
                self.spend(MIX)
                trained = MIX
            self.evaluate(
                (task.model, task.attack.name if task.attack else "before", 0, step), trained
            )
        self.spend(CLOSE)
        self.time.ends()
        return False

    def evaluate(self, key, trained):
        if key in self.done:
            return
        self.time.evaluates()
        for number in range(1, self.images + 1):
            self.spend(DRAW)
            self.time.drew(number / self.images)
            self.tell()
        self.spend(SCORE)
        model, attack, seed, step = key
        seconds = {"generate": self.images * DRAW, "score": SCORE, "train": trained}
        found = Evaluation(
            model=model, attack=attack, seed=seed, step=step,
            seconds={name: value * self.speed for name, value in seconds.items()},
        )  # fmt: skip
        self.done[key] = found
        self.time.evaluated(found)
        self.tell()

    def tell(self):
        self.told.append((self.now, self.time.left(self.done)))

    def errors(self):
        """Return each estimate over what was really left, until the last tenth of the work."""
        return [
            left / (self.now - at)
            for at, left in self.told
            if left is not None and self.now - at > self.now / 10
        ]


def risen(machine):
    """Return by how much the estimate ever rose above an earlier one, as a share of the whole."""
    lowest, most = float("inf"), 0.0
    for _, left in machine.told:
        if left is not None:
            lowest = min(lowest, left)
            most = max(most, left - lowest)
    return most / machine.now


def test_the_time_left_is_right_from_the_first_estimate_on_and_falls_steadily():
    machine = Machine().run()
    errors = machine.errors()
    assert min(errors) > 0.85 and max(errors) < 1.15
    assert risen(machine) < 0.1, "only as `full`, which nobody has measured, turns out slower"
    first = next(at for at, left in machine.told if left is not None)
    assert first < machine.now / 6


def test_nothing_is_said_before_a_training_is_measured_that_takes_long():
    machine = Machine()
    machine.run(stop=lambda key, step: step == 3)
    assert [left for _, left in machine.told] == [None] * len(machine.told)
    assert len(machine.told) > 20, "two evaluations were measured meanwhile"


@pytest.mark.parametrize(("attack", "step"), [("LoRA", 90), ("LoRA, concept", 1), ("full", 40)])
def test_right_after_a_resume_the_time_left_is_that_of_what_is_left(attack, step):
    """A training that was cut off is repeated from its start, and its time left says so."""
    before = Machine()
    before.run(stop=lambda key, at: key == ("original", attack) and at == step)
    after = Machine(before.done.values()).run()
    assert after.told[0][1] is not None, "known from the first report on"
    errors = after.errors()
    assert min(errors) > 0.85 and max(errors) < 1.15, attack
    assert risen(after) < (0.02 if attack == "full" else 0.1)


def test_a_machine_that_is_slower_after_a_resume_is_noticed():
    before = Machine()
    before.run(stop=lambda key, at: key == ("original", "full"))
    after = Machine(before.done.values(), speed=3.0).run()
    half = [left / (after.now - at) for at, left in after.told if 0.45 < at / after.now < 0.8]
    assert min(half) > 0.85 and max(half) < 1.15


def test_several_ranks_share_what_is_left():
    told = {}
    for ranks in (1, 4):
        machine = Machine()
        machine.time._ranks = ranks
        machine.run(stop=lambda key, step: key == ("original", "LoRA") and step == 90)
        told[ranks] = machine.told[-1][1]
    assert told[4] == pytest.approx(told[1] / 4, rel=0.2)
