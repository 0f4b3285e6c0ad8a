"""Check everything about a probe that can be known before any weight is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.info import CheckpointInfo
from ..data.captions import listed
from ..data.encoded_file import is_encoded
from ..data.image_set import find_broken, read_image_folder
from ..errors import ConfigError, ResAlignError
from ..plan.attack import ORIGINAL
from ..plan.fine_tune import RETAIN
from ..plan.images import ImageSet
from ..plan.probe import ProbeCheckpoint, ProbeJob, ProbePlan
from ..plan.probe_settings import too_few_steps
from .device import resolve_device
from .family_defaults import guidance_doubts
from .image_size import size_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCheck:
    """Result of a check. checkpoints: name and family of each that can be loaded. Problems stop
    the probe; warnings do not."""

    problems: tuple[str, ...]
    checkpoints: tuple[str, ...]
    device: str
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"checkpoint  {text}" for text in self.checkpoints]
        lines.append(f"device      {self.device}")
        lines += [f"warning: {text}" for text in self.warnings]
        lines += [f"problem: {text}" for text in self.problems]
        return "\n".join(lines)


def check_probe_job(job: ProbeJob) -> ProbeCheck:
    """Check the files, scorers, prompts, images and packages that a probe needs."""
    problems: list[str] = []
    warnings: list[str] = []
    device = _try(problems, lambda: resolve_device(job.device))
    found = check_checkpoints(job.checkpoints, problems, warnings)
    for info in itertools.islice(found.values(), 1):  # all are drawn at the original's size
        warnings += guidance_doubts(job.plan, info.family)
        sides = {"resolution": job.plan.resolution}
        sides["generation.resolution"] = job.plan.generation.resolution
        problems += size_problems(info, sides)
    families = {name: info.family.name for name, info in found.items()}
    if few := too_few_steps(job.plan):
        warnings.append(few)
    _check_plan(job.plan, families, problems, warnings)
    return ProbeCheck(
        problems=tuple(problems), checkpoints=tuple(f"{n}: {f}" for n, f in families.items()),
        device=device or job.device, warnings=tuple(dict.fromkeys(warnings)),
    )  # fmt: skip


def check_checkpoints(
    checkpoints: Sequence[ProbeCheckpoint], problems: list[str], warnings: list[str] | None = None
) -> dict[str, CheckpointInfo]:
    """Recognise each checkpoint that can be loaded; add to the problems of others.

    warnings: takes what the user should know of those that can.
    """
    found = {
        each.name: info
        for each in checkpoints
        if (info := _try(problems, lambda each=each: _recognised(each, warnings)))
    }
    names = [each.name for each in checkpoints]
    if len(set(names)) < len(names):
        problems.append(f"probe: checkpoints need different names, these are {', '.join(names)}")
    if len({info.family.name for info in found.values()}) > 1:
        families = ", ".join(f"{name} is {info.family}" for name, info in found.items())
        problems.append(f"probe: only checkpoints of one family compare: {families}")
    return found


def _recognised(checkpoint: ProbeCheckpoint, warnings: list[str] | None) -> CheckpointInfo:
    from ..checkpoint.detect import detect
    from ..checkpoint.load import check_loadable
    from ..run.folder import RunFolder

    path, prediction, parts = Path(checkpoint.path), checkpoint.prediction, checkpoint.parts
    if not path.exists():
        raise ConfigError(f"{checkpoint.name}: {path} does not exist")
    if (path / "plan.json").is_file():
        run = RunFolder.open(path, read_only=True)
        done, total = run.steps_saved, run.plan.outer_steps
        if run.job is None:
            raise ConfigError(f"{checkpoint.name}: {path} is not a run of a checkpoint's file")
        if done < total:
            raise ConfigError(
                f"{checkpoint.name}: {path} stopped after step {done} of {total}: resume it first, "
                "then probe it"
            )
        path, prediction, parts = Path(run.job.checkpoint), run.job.prediction, run.job.parts
    info = check_loadable(detect(path, prediction=prediction, parts=parts))
    if warnings is not None:
        warnings += [f"{checkpoint.name}: {text}" for text in info.cautions]
    return info


def _check_plan(
    plan: ProbePlan, families: dict[str, str], problems: list[str], warnings: list[str]
) -> None:
    from ..checkpoint.detect import detect_denoiser
    from ..checkpoint.header import read_header
    from ..probe.attack_optimisers import check_optimiser
    from ..probe.prompts import plan_requests
    from ..scorers.registry import build_scorer

    for scorer in plan.scorers:
        _try(problems, lambda scorer=scorer: build_scorer(scorer))
    _try(problems, lambda: plan_requests(plan))
    for attack in plan.trainings:
        _try(problems, lambda attack=attack: check_optimiser(attack))
    for lora in {file.path for attack in plan.loras for file in attack.loras}:
        _try(problems, lambda lora=lora: read_header(Path(lora)))
    others = [(merge.name, merge.other, "be merged") for merge in plan.merges]
    others += [(each.name, each.trained_on, "share a LoRA") for each in plan.trainings]
    for name, path, what in others:
        if path and path != ORIGINAL:
            other = _try(problems, lambda path=path: detect_denoiser(path))
            if other and families and other.family.name not in families.values():
                problems.append(
                    f"attack {name}: {path} is of family {other.family.name}; only checkpoints of "
                    f"one family can {what}"
                )
    sets = [concept.images for concept in plan.concepts] + [plan.forget_set, plan.retain_set]
    folders = {each.folder: each for each in sets if each and each.folder}
    for attack in plan.trainings:
        for folder in (attack.data, attack.prior_data):
            if folder and folder != RETAIN:
                folders.setdefault(folder, ImageSet(folder=folder))
    for image_set in folders.values():
        _try(problems, lambda image_set=image_set: _check_images(image_set, plan, warnings))


def _check_images(image_set: ImageSet, plan: ProbePlan, warnings: list[str]) -> None:
    if is_encoded(image_set.folder):
        return
    folder = read_image_folder(image_set)
    if note := folder.note(image_set.folder):
        warnings.append(note)
    images = folder.images
    broken = find_broken(images)
    if broken and not (plan.skip_broken_images and len(broken) < len(images)):
        names = listed(f"{name} ({why})" for name, why in broken.items())
        raise ConfigError(
            f"image set {image_set.folder}: {len(broken)} of {len(images)} cannot be read: {names}"
            "; remove them, or set skip_broken_images"
        )


def _try(problems: list[str], call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ResAlignError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None
