"""A probe's outcome as a checkpoint's header holds it, and the same probe done once more.

The header keeps the plan and, look by look, how many images were flagged: little enough for a
file, and all that is needed to see whether somebody else gets the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..plan.attack import ORIGINAL
from ..plan.file import from_json, to_json
from ..plan.fine_tune import RETAIN
from ..plan.images import ImageSet
from ..plan.probe import BEFORE, ProbeCheckpoint, ProbePlan
from ..progress import ProgressCallback, silent
from ..statistics.intervals import wilson
from .evaluation import CONCEPT
from .probe import run_probe
from .results import Look, ProbeResult
from .subjects import FileSubject
from .summary import headline, summarise


def probe_record(result: ProbeResult, model: str) -> dict[str, Any]:
    """What to write into the header of `model`, one of the probe's; see `Provenance.probe`.

    A plan that names folders or files of its maker's is not written, as it would neither tell
    others anything nor be theirs to repeat: `plan` is then absent.
    """
    summary = summarise(result)
    scorer = result.plan.scorers[0].name
    names = (result.models[0].name, model)
    looks = [
        [look.model, look.attack, look.seed, look.step, *_counts(look, scorer)]
        for look in result.looks
        if look.model in names
    ]
    record: dict[str, Any] = {
        "scorer": scorer,
        "headline": headline(summary),
        "original": result.models[0].name,
        "model": model,
        "results": _results(looks, model),
        "looks": looks,
    }
    if not paths_of(result.plan):
        record["plan"] = to_json(result.plan)
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """One look of a recorded probe and the same look now: flagged images of `images`."""

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
        """The 95 % intervals of the two rates overlap."""
        one, other = wilson(self.recorded, self.images), wilson(self.now, self.images)
        return one[0] <= other[1] and other[0] <= one[1]


def reproduce(
    record: Mapping[str, Any],
    original: Path,
    file: Path,
    *,
    folder: Path | None = None,
    device: str = "cpu",
    on_progress: ProgressCallback = silent,
) -> tuple[Repeated, ...]:
    """Do the recorded probe again with these two files.

    The record is a stranger's: a plan in it that names files, folders or commands is refused,
    since `verify` must not run or read what a downloaded checkpoint says.

    Raises:
        RunError: the record has no plan that could, or may, be repeated.
    """
    if "plan" not in record:
        raise RunError(
            "the recorded probe cannot be done again from the file alone: it used folders or "
            "files of its maker's"
        )
    try:
        plan = from_json(ProbePlan, record["plan"], where="recorded plan")
    except (OverflowError, RecursionError) as error:
        raise RunError(f"the recorded plan makes no sense: {error}") from None
    found_paths = paths_of(plan)
    if found_paths:
        raise RunError(
            f"the recorded probe names files or commands ({found_paths[0]!r}), which no probe that "
            "this program records does: it is not done again"
        )
    names = _checked(record, plan)
    subjects = [
        FileSubject(ProbeCheckpoint(name=name, path=str(path)), device)
        for name, path in zip(names, (original, file), strict=True)
    ]
    result = run_probe(
        subjects, plan, folder=folder, originals={ORIGINAL: original}, on_progress=on_progress
    )
    found = []
    for name, attack, seed, step, hits, images in record["looks"]:
        look = result.look(name, attack, seed, step)
        if look is None:
            raise RunError(f"the recorded probe has a look ({name}, {attack}) its plan has not")
        now, drawn = _counts(look, record["scorer"])
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
    if len(found) != len(result.looks):
        raise RunError(f"the recorded probe has {len(found)} looks, its plan {len(result.looks)}")
    return tuple(found)


def _checked(record: Mapping[str, Any], plan: ProbePlan) -> tuple[str, str]:
    """The names of original and model, of a record that means what it says."""
    original, model = record.get("original"), record.get("model")
    found = record.get("looks")
    looks: list[Any] = found if isinstance(found, list) else [found]
    if not (isinstance(original, str) and isinstance(model, str) and original != model):
        raise RunError("the recorded probe does not name an original and another model")
    if record.get("scorer") not in [scorer.name for scorer in plan.scorers]:
        raise RunError("the recorded probe counts by a scorer that its plan has not")
    kinds = [str, str, int, int, int, int]
    for look in looks:
        if (
            not isinstance(look, list)
            or [type(part) for part in look] != kinds
            or not 0 <= look[4] <= look[5]
        ):
            raise RunError(f"the recorded probe has a look that is none: {str(look)[:80]}")
    if len({tuple(look[:4]) for look in looks}) < len(looks):
        raise RunError("the recorded probe has the same look twice")
    if record.get("results") != _results(looks, model):
        raise RunError("the recorded probe's results are not those of its looks")
    return original, model


def _results(looks: Sequence[Sequence[Any]], model: str) -> list[dict[str, Any]]:
    """What a model card says of each look after an attack: rates, of [..., flagged, images]."""
    rates = {tuple(look[:4]): look[4] / look[5] for look in looks if look[5]}
    before = (model, BEFORE, 0, 0)
    return [
        {
            "fine_tune": f"{attack}, step {step}, seed {seed}" if step else attack,
            "images": images,
            "flagged_before": rates.get(before),
            "flagged_after": rates[name, attack, seed, step],
        }
        for name, attack, seed, step, _, images in looks
        if name == model and images and (name, attack, seed, step) != before
    ]


def paths_of(plan: ProbePlan) -> list[str]:
    """Every folder and file that a plan names."""
    sets: Sequence[ImageSet | None] = (
        plan.forget_set, plan.retain_set, *(concept.images for concept in plan.concepts)
    )  # fmt: skip
    found = [part.folder for part in sets if part is not None]
    for attack in plan.fine_tunes:
        found += [name for name in (attack.data, attack.prior_data) if name != RETAIN]
    found += [lora.path for attack in plan.loras for lora in attack.loras]
    found += [attack.other for attack in plan.merges if attack.other != ORIGINAL]
    found += [part.file for part in plan.prompts]
    found += [scorer.weights for scorer in plan.scorers]
    found += [part for scorer in plan.scorers for part in scorer.command]
    found += [plan.utility.clip, plan.utility.features, plan.utility.reference]
    return [path for path in found if path]


def _counts(look: Look, scorer: str) -> tuple[int, int]:
    """(flagged, images) of the set that the scorer's headline is about."""
    for kind in ("unsafe", CONCEPT):
        part = look.set_of(kind)
        scores = part.scores_of(scorer) if part else None
        if part and scores:
            return scores.hits, part.images
    return 0, 0
