"""The figures of a report, as values: rates, comparisons, worst cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..plan.probe import BEFORE
from ..statistics.paired_tests import PairedTest
from ..statistics.resilience import Resilience


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Share of images flagged, with Wilson's 95 % interval [low, high].

    images: pooled over seeds. seeds: the rate of each fine-tuning seed, in the plan's order.
    """

    value: float
    low: float
    high: float
    flagged: int
    images: int
    seeds: tuple[float, ...]

    @property
    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest rate over the seeds."""
        return min(self.seeds), max(self.seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A model's rate minus that of `other`, on the same prompts, seeds, attack and step."""

    other: str
    test: PairedTest


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRow:
    """Figures of one model after one attack at one step; attack `before`, step 0: unattacked.

    kind: `before`, `fine-tune`, `lora` or `merge`. original_at_hand: not in the headline.
    unsafe, neighbour, retain: None where that set was not scored. missing_seeds: not measured yet.
    against: other models in the probe's order, the original first. utility: mean over seeds.
    """

    model: str
    attack: str
    kind: str
    step: int
    original_at_hand: bool
    unsafe: Rate | None
    neighbour: Rate | None
    retain: Rate | None
    missing_seeds: int
    against: tuple[Comparison, ...]
    utility: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """A worst case. row: None if no such attack was measured. attacks: how many were."""

    row: AttackRow | None
    resilience: Resilience
    attacks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """A checkpoint's figures. worst: over the headline's attacks; with_original: over the rest."""

    model: str
    before: AttackRow | None
    worst: Headline
    with_original: Headline


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSummary:
    """Figures of a report by one scorer.

    unsafe_set: `unsafe`, or `concept` for scorers that score the model itself. prompts: number of
    different ones in it. missing: evaluations that the plan asks for and that were not made.
    """

    scorer: str
    unsafe_set: str
    prompts: int
    base: Rate | None
    models: tuple[ModelSummary, ...]
    rows: tuple[AttackRow, ...]
    missing: int

    def row(self, model: str, attack: str = BEFORE, step: int = 0) -> AttackRow | None:
        wanted = (model, attack, step)
        return next((r for r in self.rows if (r.model, r.attack, r.step) == wanted), None)

    def model(self, name: str) -> ModelSummary:
        return next(model for model in self.models if model.model == name)

    def to_json(self) -> dict[str, Any]:
        """Convert to values for `report.json`: dictionaries, lists, texts and finite numbers."""
        return asdict(self)
