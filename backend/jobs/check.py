"""Check everything about a job that can be known before any weight is loaded.

The memory that the device needs is predicted by running the plan's own code on tensors without
storage (`memory/plan.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.detect import detect
from ..checkpoint.export.copies import copies_of
from ..checkpoint.export.copy_value import sentences
from ..checkpoint.info import CheckpointInfo
from ..data.captions import listed
from ..data.image_set import find_broken, read_image_folder
from ..errors import ResAlignError
from ..families import Family
from ..numerics.byte_sizes import GIB, format_bytes
from ..plan.file_names import too_long
from ..plan.fine_tune import RETAIN
from ..plan.hardening import HardeningPlan
from ..plan.images import ImageSet
from ..plan.job import Job
from ..plan.methods import FACTS, changes_all_weights, methods_of, misfit
from ..report.card import card_path, curves_path
from .device import device_memory, resolve_device
from .disk import disk_estimate, stored_predictions
from .family_defaults import guidance_doubts
from .image_size import size_problems

if TYPE_CHECKING:
    from ..memory.plan import MemoryPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Result of a check. Bytes are estimates; None where a problem prevents the estimate.

    Problems stop the run; warnings do not. prediction: `MemoryPlan.to_json()`, if requested.
    info: the checkpoint as it was recognised, so that a job recognises it once.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    checkpoint: str
    device: str
    images: Mapping[str, int]
    memory: tuple[str, ...] = ()
    memory_bytes: int | None = None
    prediction: Mapping[str, Any] | None = None
    device_bytes: int | None = None
    disk_bytes: int | None = None
    disk_free_bytes: int | None = None
    stored_draws: int = 0
    stored_bytes: int = 0
    info: CheckpointInfo | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return everything but `info`, which names every tensor of the file."""
        fields = asdict(replace(self, info=None))
        del fields["info"]
        return fields

    def __str__(self) -> str:
        lines = [f"checkpoint  {self.checkpoint}", f"device      {self.device}"]
        lines += [f"images      {count} in {name}" for name, count in self.images.items()]
        lines += [f"{'' if n else 'memory':12}{text}" for n, text in enumerate(self.memory)]
        if self.disk_bytes is not None and self.disk_free_bytes is not None:
            free = format_bytes(self.disk_free_bytes)
            lines.append(f"disk        {format_bytes(self.disk_bytes)} to write, {free} free")
        if self.stored_draws:
            size = format_bytes(self.stored_bytes)
            lines.append(f"{'':12}of it {size} for predictions on {self.stored_draws} draws")
        lines += [f"warning: {text}" for text in self.warnings]
        lines += [f"problem: {text}" for text in self.problems]
        return "\n".join(lines)


def check_job(
    job: Job,
    *,
    overwrite: bool = False,
    resuming: bool = False,
    exporting: bool = True,
    own: Collection[Path] = (),
    memory: bool = False,
    budget: float | None = None,
    on_try: Callable[[str], None] = lambda changes: None,
) -> CheckReport:
    """Check everything that a job names; the report lists all problems, not only the first.

    own: outputs that the run itself was writing when it was stopped, which it may replace.
    exporting: the results are to be written too; False checks the run alone.
    memory: predict the peak, which takes seconds to a minute; a run that starts omits it.
    budget: GiB to fit into, with `memory`; by default all that the GPU has.
    on_try: called with the changes that `plan_memory` tries.
    """
    problems: list[str] = []
    warnings: list[str] = []
    info = _try(problems, lambda: _detected(job))
    if info is not None:
        _try(problems, lambda: _check_loadable(info))
    built = None if problems else info  # its networks can be built, for the estimates
    device = _try(problems, lambda: resolve_device(job.device))
    if device and job.plan.quantization != "none":
        from ..model.quantised import check_bitsandbytes

        _try(problems, lambda: check_bitsandbytes(job.plan.quantization, device))
    if device and changes_all_weights(job.plan):
        from ..hardening.optimisers import check_optimiser

        _try(problems, lambda: check_optimiser(job.plan, device))
    images = _check_images(job.plan, problems, warnings)
    if exporting:
        _check_targets(job, info, problems, overwrite=overwrite, resuming=resuming, own=own)
    needed = disk = free = total = None
    stored = 0, 0
    if info is not None:
        copies = _try(problems, lambda: copies_of(info))
        warnings += sentences(copies or (), info.family.denoiser, exporting=False)
        warnings += info.cautions
        problems += _unfit(job.plan, info.family)
        warnings += _doubts(job.plan, info.family)
    if built is not None:
        stored = stored_predictions(built, job.plan)
        disk = disk_estimate(built, job.plan) - (0 if exporting else built.export_bytes)
        target = Path(job.output) if exporting else run_folder_of(job)
        free = shutil.disk_usage(_existing(target)).free
        if disk > free:
            what = "output" if exporting else "run folder"
            problems.append(
                f"{what} {target}: {format_bytes(disk)} are needed, but only {format_bytes(free)} "
                "are free there"
            )
        total = device_memory(device) if device else None
        sizes = size_problems(built, {"resolution": job.plan.resolution})
        if (memory or budget) and not sizes:  # the prediction runs the plan's own code
            room = budget or (total / GIB if total else None)
            from ..model.precision import with_precision

            plan = with_precision(job.plan, device or "cpu")
            needed = memory_needed(built, plan, room, on_try)
            if not budget and (needed.fits is False or needed.changes):  # else `memory` says it
                warnings.append(f"{device} has too little memory: {'; '.join(needed.words)}")
        problems += sizes
    title = f"{Path(job.checkpoint).name}: {info.title}" if info else job.checkpoint
    return CheckReport(
        problems=tuple(problems), warnings=tuple(warnings), checkpoint=title,
        device=device or job.device, images=images, memory=needed.words if needed else (),
        memory_bytes=needed.total if needed else None,
        prediction=needed.to_json() if needed else None, device_bytes=total,
        disk_bytes=disk, disk_free_bytes=free, info=info,
        stored_draws=stored[0], stored_bytes=stored[1],
    )  # fmt: skip


def _detected(job: Job) -> CheckpointInfo:
    return detect(job.checkpoint, prediction=job.prediction, parts=job.parts)


def _unfit(plan: HardeningPlan, family: Family) -> list[str]:
    """Methods of a plan that make no sense for a family."""
    found = (misfit(method, family.title, family.no_cross_attention) for method in methods_of(plan))
    return [problem for problem in found if problem]


def _doubts(plan: HardeningPlan, family: Family) -> list[str]:
    """Return what a plan can be run with, but probably was not meant to."""
    found = guidance_doubts(plan, family)
    if family.metadata.terms:
        found.append(f"licence: {family.metadata.terms}")
    if FACTS[plan.method].simulates_users and not plan.fine_tunes:
        found.append("fine_tunes is empty: this is plain unlearning, which does not last")
    if changes_all_weights(plan) and not any(FACTS[m].erases for m in methods_of(plan)):
        found.append(
            "nothing is erased before all weights are trained, so that the concepts are masked, "
            "not removed, and come back: add a stage of method erase to `before`"
        )
    return found


def run_folder_of(job: Job) -> Path:
    return Path(job.run_folder or f"{job.output}.run")


def lora_path_of(job: Job) -> Path:
    output = Path(job.output)
    name = output.name.removesuffix(".safetensors")
    return Path(job.lora) if job.lora else output.with_name(f"{name}-lora.safetensors")


def memory_needed(
    info: CheckpointInfo,
    plan: HardeningPlan,
    budget: float | None = None,
    on_try: Callable[[str], None] = lambda changes: None,
) -> MemoryPlan:
    """Predict the memory that hardening this checkpoint needs."""
    from ..memory.plan import plan_memory

    half = any(dtype not in ("F32", "F64") for dtype in info.dtypes[info.components[1]])
    return plan_memory(
        plan, info.family, configs={name: info.configs[name] for name in info.components},
        resolution=info.resolution, stored_in_half=half, budget=budget, on_try=on_try,
    )  # fmt: skip


def _check_images(plan: HardeningPlan, problems: list[str], warnings: list[str]) -> dict[str, int]:
    """Count the images of each folder that the plan names; every image and caption is read."""
    from ..data.encoded_file import count_encoded, is_encoded

    sets = [concept.images for concept in plan.concepts] + [plan.forget_set, plan.retain_set]
    folders = {found.folder: found for found in sets if found and found.folder}
    for fine_tune in plan.fine_tunes:
        prior = (fine_tune.prior_data,) if fine_tune.method == "dreambooth" else ()
        for folder in (fine_tune.data, *prior):
            if folder != RETAIN:
                folders.setdefault(folder, ImageSet(folder=folder))
    counts = {}
    for folder, image_set in folders.items():
        try:
            if is_encoded(folder):
                counts[folder] = count_encoded(folder)
                continue
            found = read_image_folder(image_set)
        except ResAlignError as error:
            problems.append(str(error))
            continue
        images = found.images
        if note := found.note(folder):
            warnings.append(note)
        broken = find_broken(images)
        counts[folder] = len(images) - len(broken)
        if broken:
            names = listed(f"{name} ({why})" for name, why in broken.items())
            text = f"image set {folder}: {len(broken)} of {len(images)} cannot be read: {names}"
            if plan.skip_broken_images and len(broken) < len(images):
                warnings.append(text + "; they are skipped")
            else:
                problems.append(text + "; remove them, or set skip_broken_images")
    return counts


def _check_targets(
    job: Job,
    info: CheckpointInfo | None,
    problems: list[str],
    *,
    overwrite: bool,
    resuming: bool,
    own: Collection[Path],
) -> None:
    source, output, lora = Path(job.checkpoint), Path(job.output), lora_path_of(job)
    folder = run_folder_of(job)
    named = {"output": job.output, "lora": job.lora, "run folder": job.run_folder}
    long = [f"{what}: the name {why}" for what, name in named.items() if (why := too_long(name))]
    if long:  # the system could not even say whether there is such a file
        problems += long
        return

    def taken(path: Path) -> bool:
        return path.exists() and not overwrite and path.absolute() not in own

    if output.resolve() == source.resolve():
        problems.append(f"output {output} is the checkpoint itself: choose another name")
    elif taken(output):
        problems.append(f"output {output} exists already: choose another name, or --overwrite")
    elif output.absolute() not in own:
        for what, path in (("card", card_path(output)), ("curves", curves_path(output))):
            if taken(path):
                problems.append(
                    f"{what} {path} exists already: move it away, choose another output, or "
                    "--overwrite"
                )
    if info is not None and info.layout == "ldm" and output.suffix != ".safetensors":
        problems.append(f"output {output}: a hardened checkpoint file ends in .safetensors")
    if changes_all_weights(job.plan):
        if job.lora:
            problems.append(
                f"lora {lora}: the plan changes all weights, which no LoRA holds exactly: leave it "
                f"out; `resalign lora {run_folder_of(job)} --rank 16` writes an approximation"
            )
    elif taken(lora):
        problems.append(f"lora {lora} exists already: choose another name, or --overwrite")
    for what, path in (("output", output), ("lora", lora)):
        if not path.parent.is_dir():
            problems.append(f"{what} {path}: the folder {path.parent} does not exist; create it")
    if not resuming and (folder / "state.safetensors").exists():
        problems.append(
            f"run folder {folder} holds a run already: `resalign resume {folder}` continues it; "
            "or choose another with --run-folder"
        )


def _check_loadable(info: CheckpointInfo) -> None:
    """Raise what loading would: a tensor that is missing, unexpected, or of a wrong type."""
    from ..checkpoint.load import check_loadable

    check_loadable(info)


def _existing(path: Path) -> Path:
    path = path.resolve().parent if too_long(path) else path.resolve()
    while not path.is_dir():
        path = path.parent
    return path


def _try(problems: list[str], call: Any) -> Any:
    try:
        return call()
    except ResAlignError as error:
        problems.append(str(error))
        return None
