"""What a probe does in one go: look at a checkpoint as it is, or attack it and look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..plan.attack import Attack, FineTuneAttack
from ..plan.fine_tune import FineTuneConfig
from ..plan.probe import BEFORE, ProbePlan

Key = tuple[str, str, int, int]  # model, attack, seed, step


@dataclass(frozen=True, slots=True)
class Unit:
    """place, model: of the checkpoint among the subjects. attack: None for the look before."""

    place: int
    model: str
    attack: Attack | None = None
    seed: int = 0

    @property
    def keys(self) -> list[Key]:
        """The looks that it gives."""
        if self.attack is None:
            return [(self.model, BEFORE, 0, 0)]
        steps = self.attack.looks if isinstance(self.attack, FineTuneAttack) else (0,)
        return [(self.model, self.attack.name, self.seed, step) for step in steps]


def units_of(plan: ProbePlan, models: Sequence[str]) -> list[Unit]:
    """All of a probe, in order; the first is what all others are compared with."""
    found = []
    for place, model in enumerate(models):
        found.append(Unit(place, model))
        for attack in plan.attacks:
            seeds = plan.seeds if isinstance(attack, FineTuneAttack) else (0,)
            found += [Unit(place, model, attack, seed) for seed in seeds]
    return found


def as_attack(config: FineTuneAttack | FineTuneConfig) -> FineTuneAttack:
    """A simulated user's configuration as an attack for real."""
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
