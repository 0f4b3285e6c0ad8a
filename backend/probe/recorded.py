"""The record of a probe in a checkpoint's header, and its reproduction.

The header holds the plan and, for each evaluation, how many images were flagged: small enough for a
header, and enough to see whether somebody else gets the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapter.dense import AnyAdapter
from ..errors import ExportError, RunError
from ..plan.attack import ORIGINAL
from ..plan.file import from_json, to_json
from ..plan.fine_tune import RETAIN
from ..plan.images import ImageSet
from ..plan.job import Prediction
from ..plan.probe import BEFORE, ProbeCheckpoint, ProbePlan
from ..progress import ProgressCallback, silent
from ..statistics.intervals import wilson
from .budget import check_size
from .headline import headline
from .probe import run_probe
from .results import CONCEPT, Evaluation, ModelInfo, ProbeResult
from .subjects import FileSubject, adapter_digest
from .summarise import summarise
from .verdict import of_model

_DIGEST = re.compile(r"\badapter .*, ([0-9a-f]{16})$")  # as subjects end their `method`


def probe_record(result: ProbeResult, model: str) -> dict[str, Any]:
    """Record for the header of `model`, one of the probe's; see `Provenance.probe`.

    `plan` is absent if it names folders or files of the machine: others could not repeat it.
    """
    summary = summarise(result)
    scorer = result.plan.scorers[0].name
    names = (result.models[0].name, model)
    evaluations = [
        [
            evaluation.model,
            evaluation.attack,
            evaluation.seed,
            evaluation.step,
            *_counts(evaluation, scorer),
        ]
        for evaluation in result.evaluations
        if evaluation.model in names
    ]
    record: dict[str, Any] = {
        "scorer": scorer,
        "headline": headline(summary),
        "verdict": of_model(result, summary, model)[0],
        "original": result.models[0].name,
        "model": model,
        "results": _results(evaluations, model),
        "looks": evaluations,
    }
    if not paths_of(result.plan):
        record["plan"] = to_json(result.plan)
    return record


def adapter_of(model: ModelInfo) -> str:
    """Return the digest of the adapter that a probe's model carries; empty where it is a file."""
    found = _DIGEST.search(model.method)
    return found[1] if found else ""


def check_adapter(result: ProbeResult, adapter: AnyAdapter, *, needed: bool = False) -> None:
    """Raise an ExportError if the last model of a probe was hardened with another adapter.

    needed: also where the probe does not know the adapter, as it measured a file or a MODEL.
    """
    model = (result.compared or result.models)[-1]
    found = adapter_of(model)
    if not found and not needed:
        return
    if not found:
        raise ExportError(
            f"the probe does not say which adapter its model {model.name} carries, so its "
            "figures cannot be written into this file"
        )
    if found != adapter_digest(adapter):
        raise ExportError(
            f"the probe measured another run: its model {model.name} carries another adapter"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """A recorded evaluation and its repetition: flagged images of `images`, then and now."""

    model: str
    attack: str
    seed: int
    step: int
    images: int
    recorded: int
    now: int

    @property
    def exact(self) -> bool:
        return self.recorded == self.now

    @property
    def agrees(self) -> bool:
        """True if the 95 % intervals of the two rates overlap."""
        one, other = wilson(self.recorded, self.images), wilson(self.now, self.images)
        return one[0] <= other[1] and other[0] <= one[1]


def reproduce(
    record: Mapping[str, Any],
    original: Path,
    file: Path,
    *,
    folder: Path | None = None,
    device: str = "cpu",
    prediction: Prediction = "",
    parts: Mapping[str, str] | None = None,
    on_progress: ProgressCallback = silent,
) -> tuple[Repeated, ...]:
    """Repeat the recorded probe with these two files.

    prediction: decides what the original predicts, where it contradicts itself. parts: files of
    components that neither of the two holds, by component.

    The record is untrusted: a plan that names files, folders or commands is refused, because
    `verify` must not run or read what a downloaded checkpoint names.

    Raises:
        RunError: the record has no plan that could, or may, be repeated.
    """
    if "plan" not in record:
        raise RunError(
            "the recorded probe cannot be repeated from the file alone: it used folders or "
            "files of its author's"
        )
    try:
        plan = from_json(ProbePlan, record["plan"], where="recorded plan")
    except (OverflowError, RecursionError) as error:
        raise RunError(f"the recorded plan is invalid: {error}") from None
    found_paths = paths_of(plan)
    if found_paths:
        raise RunError(
            f"the recorded probe names files or commands ({found_paths[0]!r}); a "
            "genuine record never does: it is not repeated"
        )
    check_size(plan)
    names = _checked(record, plan)
    apart: dict[str, Any] = dict(parts or {})
    subjects = [
        FileSubject(ProbeCheckpoint(name=name, path=str(path), prediction=decided, **apart), device)
        for name, path, decided in zip(names, (original, file), (prediction, ""), strict=True)
    ]
    result = run_probe(
        subjects,
        plan,
        folder=folder,
        originals={ORIGINAL: subjects[0].checkpoint},
        on_progress=on_progress,
    )
    found = []
    for name, attack, seed, step, hits, images in record["looks"]:
        evaluation = result.evaluation(name, attack, seed, step)
        if evaluation is None:
            raise RunError(
                f"the recorded probe has an evaluation ({name}, {attack}) that is not in its plan"
            )
        now, drawn = _counts(evaluation, record["scorer"])
        if drawn != images:
            raise RunError(
                f"the recorded probe counts {images} images ({name}, {attack}), its plan {drawn}"
            )
        found.append(
            Repeated(
                model=name, attack=attack, seed=seed, step=step, images=images, recorded=hits,
                now=now,
            )
        )  # fmt: skip
    if len(found) != len(result.evaluations):
        raise RunError(
            f"the recorded probe has {len(found)} evaluations, its plan {len(result.evaluations)}"
        )
    return tuple(found)


def _checked(record: Mapping[str, Any], plan: ProbePlan) -> tuple[str, str]:
    """Check a record, and return the names of its original and its model."""
    original, model = record.get("original"), record.get("model")
    found = record.get("looks")
    evaluations: list[Any] = found if isinstance(found, list) else [found]
    if not (isinstance(original, str) and isinstance(model, str) and original != model):
        raise RunError("the recorded probe does not name an original and another model")
    if record.get("scorer") not in [scorer.name for scorer in plan.scorers]:
        raise RunError("the recorded probe counts by a scorer that is not in its plan")
    kinds = [str, str, int, int, int, int]
    for evaluation in evaluations:
        if (
            not isinstance(evaluation, list)
            or [type(part) for part in evaluation] != kinds
            or not 0 <= evaluation[4] <= evaluation[5]
        ):
            raise RunError(f"the recorded probe has an invalid evaluation: {str(evaluation)[:80]}")
    if len({tuple(evaluation[:4]) for evaluation in evaluations}) < len(evaluations):
        raise RunError("the recorded probe has the same evaluation twice")
    if record.get("results") != _results(evaluations, model):
        raise RunError("the recorded probe's results are not those of its evaluations")
    return original, model


def _results(evaluations: Sequence[Sequence[Any]], model: str) -> list[dict[str, Any]]:
    """Return the model card's rates, one per evaluation after an attack: [..., flagged, images]."""
    rates = {
        tuple(evaluation[:4]): evaluation[4] / evaluation[5]
        for evaluation in evaluations
        if evaluation[5]
    }
    before = (model, BEFORE, 0, 0)
    return [
        {
            "fine_tune": f"{attack}, step {step}, seed {seed}" if step else attack,
            "images": images,
            "flagged_before": rates.get(before),
            "flagged_after": rates[name, attack, seed, step],
        }
        for name, attack, seed, step, _, images in evaluations
        if name == model and images and (name, attack, seed, step) != before
    ]


def paths_of(plan: ProbePlan) -> list[str]:
    """Return every folder and file that a plan names."""
    sets: Sequence[ImageSet | None] = (
        plan.forget_set, plan.retain_set, *(concept.images for concept in plan.concepts)
    )  # fmt: skip
    found = [part.folder for part in sets if part is not None]
    for attack in plan.trainings:
        found += [name for name in (attack.trained_on,) if name != ORIGINAL]
        found += [name for name in (attack.data, attack.prior_data) if name != RETAIN]
    found += [lora.path for attack in plan.loras for lora in attack.loras]
    found += [attack.other for attack in plan.merges if attack.other != ORIGINAL]
    found += [part.file for part in plan.prompts]
    found += [scorer.weights for scorer in plan.scorers]
    found += [part for scorer in plan.scorers for part in scorer.command]
    found += [plan.utility.clip, plan.utility.features, plan.utility.reference]
    return [path for path in found if path]


def _counts(evaluation: Evaluation, scorer: str) -> tuple[int, int]:
    """Return (flagged, images) of the set behind the scorer's headline."""
    for kind in ("unsafe", CONCEPT):
        part = evaluation.set_of(kind)
        scores = part.scores_of(scorer) if part else None
        if part and scores:
            return scores.hits, part.images
    return 0, 0
