"""Sweeps: one kind of fine-tuning at several learning rates and shares of the concept.

A single learning rate says little: an attacker tries several, and with a rate that is too low every
model looks resilient. A sweep stands for one `FineTuneAttack` per combination.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from ..errors import ConfigError
from .adapter import Targets
from .attack import AttackMethod, AttackOptimiser, FineTuneAttack, TrainedOn
from .checks import check_fields, freeze_lists
from .document import document
from .field import NOT_EMPTY, Help, Range
from .fine_tune import RETAIN

MOST = 1000  # attacks of one sweep


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One kind of fine-tuning at several learning rates and shares of the concept."""

    name: Annotated[str, NOT_EMPTY, Help("Name of the sweep in the report; no two alike.")]
    learning_rates: Annotated[
        tuple[float, ...],
        Range(0, 2, above=True),
        NOT_EMPTY,
        Help("Learning rates to try. SGD needs far higher ones than AdamW."),
    ]
    concept_shares: Annotated[
        tuple[float, ...],
        Range(0, 1),
        NOT_EMPTY,
        Help("Shares of the concept in each batch to try: 0 is benign, 1 is the concept alone."),
    ] = (0.0, 0.05, 0.2, 0.5, 1.0)
    data: TrainedOn = RETAIN
    method: Annotated[AttackMethod, Help("What is trained.")] = "lora"
    targets: Targets = ("attention",)
    rank: Annotated[int, Range(1, 1024), Help("Rank of the new adapter.")] = 8
    optimiser: Annotated[AttackOptimiser, Help("Optimiser of the attacks.")] = "adamw"
    steps: Annotated[int, Range(1, 1_000_000), Help("Updates of each attack.")] = 200
    looks: Annotated[
        tuple[int, ...],
        Help("Updates after which the model is scored, rising; empty: at the end only."),
    ] = ()
    batch: Annotated[int, Range(1, 4096), Help("Images in one batch.")] = 4

    def __post_init__(self) -> None:
        freeze_lists(self)
        who = f"sweep {self.name or '(no name)'}"
        check_fields(self, who)
        for field in ("learning_rates", "concept_shares"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise ConfigError(f"{who}: one of the {field} is given twice")
        count = len(self.learning_rates) * len(self.concept_shares)
        if count > MOST:
            raise ConfigError(f"{who}: it stands for {count} attacks; at most {MOST} are allowed")
        swept_attacks(self)

    def attack_name(self, learning_rate: float, concept_share: float) -> str:
        return f"{self.name}, {100 * concept_share:g} % concept, rate {learning_rate:g}"


@lru_cache(maxsize=256)
def swept_attacks(sweep: Sweep) -> tuple[FineTuneAttack, ...]:
    """Return the attacks of a sweep: for each share of the concept, every learning rate."""
    return tuple(
        FineTuneAttack(
            name=sweep.attack_name(rate, share), data=sweep.data, concept_share=share,
            method=sweep.method, targets=sweep.targets, rank=sweep.rank,
            optimiser=sweep.optimiser, learning_rate=rate, steps=sweep.steps, looks=sweep.looks,
            batch=sweep.batch,
        )
        for share in sweep.concept_shares
        for rate in sweep.learning_rates
    )  # fmt: skip
