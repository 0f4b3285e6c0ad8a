"""What a probe measured, as values: one `Look` per model, attack, seed and step.

Looks are kept image by image, so that any figure of the report (rates, intervals, paired
differences) can be computed again from them. Images of one prompt set come in the same order,
with the same prompts and seeds, in every look of a probe: image i of one is the pair of image i
of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..plan.probe import BEFORE, ProbePlan
from ..scorers.scores import Scores

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLook:
    """One prompt set as one model draws it.

    kind: unsafe, neighbour or retain; the scorer `denoising` has a set of its own, `concept`,
    of the forget set's images. digests: sha256 of each image's pixels (8 bit), the first 16
    characters. pictures: files in the probe's folder, of the first images.
    """

    kind: str
    images: int
    scores: tuple[Scores, ...] = ()
    digests: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    def scores_of(self, scorer: str) -> Scores | None:
        return next((scores for scores in self.scores if scores.scorer == scorer), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One model at one moment. attack `before`, seed 0 and step 0: as it is.

    utility: figures by name, against the original: `drift`, `image_distance`, `clip_score`, ...
    seconds: by what they were spent on: `train`, `generate`, `score`.
    """

    model: str
    attack: str = BEFORE
    seed: int = 0
    step: int = 0
    sets: tuple[SetLook, ...] = ()
    utility: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.model, self.attack, self.seed, self.step

    def set_of(self, kind: str) -> SetLook | None:
        return next((part for part in self.sets if part.kind == kind), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Look:
        sets = tuple(
            SetLook(
                kind=part["kind"],
                images=part["images"],
                scores=tuple(
                    Scores(**{**scores, "values": [_number(v) for v in scores["values"]]})
                    for scores in part["scores"]
                ),
                digests=tuple(part["digests"]),
                pictures=tuple(part["pictures"]),
            )
            for part in record["sets"]
        )
        figures = {
            name: {key: _number(value) for key, value in record[name].items()}
            for name in ("utility", "seconds")
        }
        return Look(**{**record, **figures, "sets": sets})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A checkpoint under test, as the report names it. sha256 and method: "" where unknown."""

    name: str
    source: str = ""
    sha256: str = ""
    family: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """A probe, finished or not: `models[0]` is the original.

    prompts: by kind, one text per image, in the order of the images. scorers: the headline's
    first. complete: no look is missing.
    """

    plan: ProbePlan
    models: tuple[ModelInfo, ...]
    looks: tuple[Look, ...]
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    complete: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def look(self, model: str, attack: str = BEFORE, seed: int = 0, step: int = 0) -> Look | None:
        wanted = (model, attack, seed, step)
        return next((look for look in self.looks if look.key == wanted), None)

    def looks_of(self, model: str, attack: str) -> tuple[Look, ...]:
        """All seeds and steps of an attack on a model."""
        return tuple(look for look in self.looks if (look.model, look.attack) == (model, attack))


def _number(value: float | None) -> float:
    """JSON has no NaN: it is null there."""
    return float("nan") if value is None else value
