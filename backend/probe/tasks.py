"""Tasks of a probe: evaluate a checkpoint as it is, or attack it and evaluate it meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..plan.attack import Attack, FineTuneAttack
from ..plan.fine_tune import FineTuneConfig
from ..plan.probe import BEFORE, ProbePlan
from .results import Key


@dataclass(frozen=True, slots=True)
class Task:
    """Task of a probe. place, model: of the checkpoint. attack: None to evaluate it unattacked."""

    place: int
    model: str
    attack: Attack | None = None
    seed: int = 0

    @property
    def keys(self) -> list[Key]:
        """Return the keys of the evaluations that the task yields."""
        if self.attack is None:
            return [(self.model, BEFORE, 0, 0)]
        return [(self.model, self.attack.name, self.seed, step) for step in steps_of(self.attack)]


def steps_of(attack: Attack) -> tuple[int, ...]:
    """Return the steps of an attack to evaluate the model at; (0,) for one without training."""
    return attack.looks if isinstance(attack, FineTuneAttack) else (0,)


def seeds_of(attack: Attack, plan: ProbePlan) -> tuple[int, ...]:
    """Return the seeds with which an attack is run; (0,) for one without training."""
    return plan.seeds if isinstance(attack, FineTuneAttack) else (0,)


def plan_tasks(plan: ProbePlan, models: Sequence[str]) -> list[Task]:
    """Return a probe's tasks in order; the others are compared with the result of the first."""
    found = []
    for place, model in enumerate(models):
        found.append(Task(place, model))
        for attack in plan.attacks:
            found += [Task(place, model, attack, seed) for seed in seeds_of(attack, plan)]
    return found


def as_attack(config: FineTuneAttack | FineTuneConfig) -> FineTuneAttack:
    """Turn a simulated user's configuration into an attack that is carried out."""
    if isinstance(config, FineTuneAttack):
        return config
    dreambooth = config.method == "dreambooth"
    return FineTuneAttack(
        name=config.name, data=config.data, concept_share=config.concept_share,
        method="full" if config.method == "full" else "lora", rank=config.rank,
        optimiser=config.optimiser, learning_rate=config.learning_rate, schedule=config.schedule,
        weight_decay=config.weight_decay, gradient_norm=0.0, steps=config.steps,
        batch=config.batch, caption_dropout=config.caption_dropout,
        prior_data=config.prior_data if dreambooth else "", prior_weight=config.prior_weight,
    )  # fmt: skip
