"""Results of a probe, as values: one `Evaluation` per model, attack, seed and step.

Evaluations keep every image's score, so that any figure of the report (rates, intervals, paired
differences) can be computed again. All evaluations of a probe draw a prompt set in the same order,
with the same prompts and seeds: image i of one is the pair of image i of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..plan.probe import BEFORE, ProbePlan
from ..scorers.scores import Scores
from ..text import typed
from .audited import Audit

SCHEMA_VERSION = 1
UNSAFE = "unsafe"  # the prompt set behind the headline
WEIGHTS = "weights "  # begins the method of a model in memory: a fingerprint of its weights
LEARNING = "learning"  # the set of an attack's held-out images: losses before and after
CONCEPT = "concept"  # the set of scorers that score the model itself

ORACLE, PLAIN = "oracle", "plain"  # roles of checkpoints

Key = tuple[str, str, int, int]  # model, attack, seed, step


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEvaluation:
    """Images of one prompt set, drawn by one model, and their scores.

    kind: unsafe, neighbour or retain; the scorer `denoising` has a set of its own, `concept`,
    of the forget set's images. digests: sha256 of each image's pixels (8 bit), the first 16
    characters. pictures: files in the probe's folder, by image, up to the last that was kept; empty
    names for those that were not.
    """

    kind: str
    images: int
    scores: tuple[Scores, ...] = ()
    digests: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    def scores_of(self, scorer: str) -> Scores | None:
        return next((scores for scores in self.scores if scores.scorer == scorer), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of one model at one step of an attack. attack `before`, seed 0, step 0: unattacked.

    utility: figures by name, against the original; `utility_figures.py` lists them.
    seconds: wall time by activity: `train`, `generate`, `score`.
    weight_change: how far the attack moved the model's own weights, ‖W' − W‖ / ‖W‖ by component;
    empty before any attack, and in probes of earlier versions.
    """

    model: str
    attack: str = BEFORE
    seed: int = 0
    step: int = 0
    sets: tuple[SetEvaluation, ...] = ()
    utility: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    weight_change: Mapping[str, float] = field(default_factory=dict)

    @property
    def moved(self) -> float | None:
        """The relative change of the network whose weights moved most; None if not measured."""
        return max(self.weight_change.values(), default=None)

    @property
    def key(self) -> Key:
        return self.model, self.attack, self.seed, self.step

    def set_of(self, kind: str) -> SetEvaluation | None:
        return next((part for part in self.sets if part.kind == kind), None)

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        if not self.weight_change:
            del record["weight_change"]  # as records were before there was such a figure
        return record

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Evaluation:
        """Read a record, which may be a stranger's; what is wrong raises a KeyError, TypeError or
        ValueError."""
        figures = {
            name: {key: _number(value, key) for key, value in record[name].items()}
            for name in ("utility", "seconds", "weight_change")
            if name in record or name != "weight_change"
        }
        found = Evaluation(**{**record, **figures, "sets": tuple(map(_read_set, record["sets"]))})
        for name in ("model", "attack"):
            typed.text(getattr(found, name), name)
        for name in ("seed", "step"):
            typed.count(getattr(found, name), name)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A checkpoint under test, as the report names it. sha256 and method: "" if unknown.

    role: `oracle` never saw the concept, `plain` is the method to compare with; "" otherwise.
    """

    name: str
    source: str = ""
    sha256: str = ""
    family: str = ""
    method: str = ""
    role: str = ""

    def __post_init__(self) -> None:
        for field_ in fields(self):
            typed.text(getattr(self, field_.name), f"{field_.name} of a model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """A probe, finished or not: `models[0]` is the original.

    prompts: by kind, one text per image, in the order of the images. complete: no evaluation is
    missing. audit: a person's labels of some pictures; None without.
    """

    plan: ProbePlan
    models: tuple[ModelInfo, ...]
    evaluations: tuple[Evaluation, ...]
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    complete: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    audit: Audit | None = None

    def evaluation(
        self, model: str, attack: str = BEFORE, seed: int = 0, step: int = 0
    ) -> Evaluation | None:
        """Return the evaluation of a model at one step of an attack; None if it is missing."""
        wanted = (model, attack, seed, step)
        return next((each for each in self.evaluations if each.key == wanted), None)

    def model_of_role(self, role: str) -> ModelInfo | None:
        return next((model for model in self.models if model.role == role), None)

    @property
    def compared(self) -> tuple[ModelInfo, ...]:
        """The models that the probe is about: neither the original, nor an oracle or baseline."""
        return tuple(model for model in self.models[1:] if not model.role)

    def evaluations_of(self, model: str, attack: str) -> tuple[Evaluation, ...]:
        """Return the evaluations of an attack on a model, over all seeds and steps."""
        return tuple(e for e in self.evaluations if (e.model, e.attack) == (model, attack))


def _read_set(part: Mapping[str, Any]) -> SetEvaluation:
    return SetEvaluation(
        kind=typed.text(part["kind"], "kind"),
        images=typed.count(part["images"], "images"),
        scores=tuple(map(_read_scores, part["scores"])),
        digests=tuple(typed.text(digest, "a digest") for digest in part["digests"]),
        pictures=tuple(typed.text(name, "a picture") for name in part["pictures"]),
    )


def _read_scores(scores: Mapping[str, Any]) -> Scores:
    found = Scores(
        **{**scores, "values": [_number(value, "a score") for value in scores["values"]]}
    )
    typed.text(found.scorer, "scorer")
    for flagged in found.flagged:
        typed.flag(flagged, "flagged")
    for label in found.labels:
        typed.text(label, "a label")
    return found


def _number(value: Any, what: str) -> float:
    """Convert null back to NaN, which JSON does not have."""
    return float("nan") if value is None else typed.figure(value, what)
