"""The figures of a report, as values: rates, comparisons, worst cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..plan.measurement import CountingConfig
from ..plan.probe import BEFORE
from ..statistics.paired_tests import PairedTest
from ..statistics.resilience import Resilience
from .audit_figures import AuditSummary
from .learning import Learnt
from .way_share import WayShare

_OPTIONAL = ("audit", "learning", "ways")
WORKS, BROKEN, NOT_MEASURED = "works", "broken", "not measured"  # states of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Share of images flagged, with Wilson's 95 % interval [low, high].

    The interval takes whole prompts as observations: its n is the number of independent images that
    they are worth, `worth` (`statistics/clusters.py`; None where it was not counted). images:
    pooled over seeds. seeds: the rate of each fine-tuning seed, in the plan's order.
    """

    value: float
    low: float
    high: float
    flagged: int
    images: int
    seeds: tuple[float, ...]
    worth: float | None = None

    @property
    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest rate over the seeds."""
        return min(self.seeds), max(self.seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well a model still draws harmless prompts; higher is better. `quality.py` measures it.

    measure: of what, in words. kind: the prompt set. value: the mean over seeds; low, high: its
    95 % interval, None where it is not a share of pictures. reference: what it is compared with.
    share: value / reference; works: at least the plan's `counting.least_quality`. by_predictions:
    the share is lower, and it works all the same as its predictions have hardly moved.
    """

    measure: str
    kind: str
    value: float
    low: float | None
    high: float | None
    images: int
    reference: float
    share: float
    works: bool
    by_predictions: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Effect of an attack on the original, at the step where it changed most.

    pictures: mean distance of its harmless pictures, 0 to 1; predictions: relative change of its
    predictions (root of the drift); weight_change: relative change of the network that moved most
    (`Evaluation.weight_change`); None where not measured. unchanged: every picture is the same
    bit for bit. had_effect: None where nothing was measured.
    """

    attack: str
    pictures: float | None
    predictions: float | None
    unchanged: bool
    had_effect: bool | None
    weight_change: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relapse:
    """Steps of a fine-tuning until a share of the original's unsafe rate is back.

    attack: "" where none counts. steps: interpolated between evaluated steps; 0: from the start;
    None: not within `within` steps. low, high: 95 % interval by resampling prompts, None: beyond
    `within`. within: the last step at which the model was evaluated and works. broken_from: the
    first step at which it does not; None if there is none.
    """

    attack: str
    share: float
    steps: float | None
    low: float | None
    high: float | None
    within: int
    broken_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far two detectors agree on the same pictures: counts of pictures, and Cohen's kappa.

    kappa: None where one of them flags all or none. low, high: 95 % interval over prompts.
    """

    first: str
    second: str
    both: int
    only_first: int
    only_second: int
    neither: int
    kappa: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorRates:
    """Findings of one scorer on one model: untouched, and at its own worst among what counts.

    kind: the prompt set, or `concept` for a scorer of the model itself.
    """

    scorer: str
    kind: str
    model: str
    before: Rate | None
    worst: Rate | None
    attack: str
    step: int


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
    quality: None where not measured. state: `works`, `broken` or `not measured`. had_effect: of the
    attack, on the original; None where not measured. counts: in the headline. weight_change: how
    far the attack moved the model's own weights, the mean over seeds of `Evaluation.moved`.
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
    quality: Quality | None = None
    state: str = NOT_MEASURED
    had_effect: bool | None = None
    counts: bool = True
    weight_change: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """A worst case over the attacks that count: they had an effect, and the model still works.

    row: None if there is none. attacks: how many count at one of their steps at least. tied: other
    attacks with exactly the worst rate. broken: attacks that left the model broken at one of their
    steps; without_effect: attacks that changed next to nothing on the original. above: a broken
    row that shows more than the worst case.
    """

    row: AttackRow | None
    resilience: Resilience
    attacks: int
    tied: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()
    above: AttackRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """A checkpoint's figures. worst: over the headline's attacks; with_original: over the rest.

    role: of the checkpoint, as in `ModelInfo`. relapses: of each fine-tuning attack; relapse: the
    earliest of those that count, chosen anew in each resample.
    """

    model: str
    before: AttackRow | None
    worst: Headline
    with_original: Headline
    relapse: Relapse | None = None
    relapses: tuple[Relapse, ...] = ()
    role: str = ""

    @property
    def broken(self) -> bool:
        """True for a model that does not work before any attack."""
        return self.before is not None and self.before.state == BROKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSummary:
    """Figures of a report by one scorer.

    unsafe_set: `unsafe`, or `concept` for scorers that score the model itself. prompts: number of
    different ones in it. missing: evaluations that the plan asks for and that were not made.
    quality_measure: what `Quality` is measured by; "" where nothing was measured. effects: of the
    attacks, on the original. agreements: of each pair of detectors of unsafe pictures. detectors:
    rates of every safety scorer, where there are several. audit: what a person's labels make of the
    rates; None without. learning: of the attacks that held images out.
    ways: to the oracle, where there is one.
    """

    scorer: str
    unsafe_set: str
    prompts: int
    base: Rate | None
    models: tuple[ModelSummary, ...]
    rows: tuple[AttackRow, ...]
    missing: int
    quality_measure: str = ""
    counting: CountingConfig = field(default_factory=CountingConfig)
    effects: tuple[Effect, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    detectors: tuple[DetectorRates, ...] = ()
    audit: AuditSummary | None = None
    learning: tuple[Learnt, ...] = ()
    ways: tuple[WayShare, ...] = ()

    def row(self, model: str, attack: str = BEFORE, step: int = 0) -> AttackRow | None:
        wanted = (model, attack, step)
        return next((r for r in self.rows if (r.model, r.attack, r.step) == wanted), None)

    def model(self, name: str) -> ModelSummary:
        return next(model for model in self.models if model.model == name)

    def way(self, model: str) -> WayShare | None:
        """A model's share of the way to the oracle after its worst attack; else its least share."""
        own = [way for way in self.ways if way.model == model and way.value is not None]
        worst = self.model(model).worst.row
        here = (way for way in own if worst is not None and way.attack == worst.attack)
        attacked = [way for way in own if way.attack != BEFORE]
        return next(here, min(attacked, key=lambda way: way.value or 0.0, default=None))

    def lowest_quality(self, model: str) -> AttackRow | None:
        """The step with the lowest benign quality among those of the headline that count."""
        rows = (
            row
            for row in self.rows
            if row.model == model and row.attack != BEFORE and row.counts and row.quality
            and row.unsafe and not row.original_at_hand
        )  # fmt: skip
        return min(rows, key=lambda row: row.quality.share if row.quality else 0.0, default=None)

    def effect(self, attack: str) -> Effect | None:
        return next((effect for effect in self.effects if effect.attack == attack), None)

    def to_json(self) -> dict[str, Any]:
        """Convert to values for `report.json`: dictionaries, lists, texts and finite numbers.

        Parts that a probe does not have (`_OPTIONAL`) are left out.
        """
        record = asdict(self)
        return {key: value for key, value in record.items() if value or key not in _OPTIONAL}
