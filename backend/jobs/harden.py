"""Harden a checkpoint file, or a model that a host has loaded; begin a run or continue it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..checkpoint.hashing import source_hashes
from ..errors import ConfigError, RunError
from ..parallel.ranks import ALONE, Ranks
from ..plan.file import to_json
from ..plan.hardening import HardeningPlan
from ..plan.job import Job
from ..progress import ProgressCallback, chain, silent
from ..run.files import leaving_nothing
from ..run.folder import STATE, RunFolder
from ..run.records import StepRecord
from ..run.stored import adopt as adopt_job
from .check import CheckReport, check_job, lora_path_of, memory_needed, run_folder_of
from .device import explaining_full_memory
from .export import Outputs, finish_outputs
from .opening import OnNote, TimeTeller, decide, memory_warnings, opening_lines
from .previews import Previews, PreviewSettings
from .spill import SpillWatch

if TYPE_CHECKING:
    from ..checkpoint.info import CheckpointInfo
    from ..memory.prediction import MemoryPlan
    from ..model.model import Model

Start = Literal["new", "resume", "any"]
OnReady = Callable[[RunFolder, "CheckReport | None"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardened:
    """A finished run.

    warnings: of the check and of the run, each once. seconds: of this call's steps; None where
    the run was finished before. outputs: None unless the job was to export.
    """

    folder: Path
    plan: HardeningPlan
    records: tuple[StepRecord, ...]
    warnings: tuple[str, ...] = ()
    seconds: float | None = None
    outputs: Outputs | None = None


def harden_job(
    job: Job | HardeningPlan,
    *,
    folder: Path | None = None,
    start: Start = "any",
    model: AbstractContextManager[Model] | None = None,
    previews: PreviewSettings | None = None,
    export: bool = False,
    overwrite: bool = False,
    adopt: bool = False,
    on_ready: OnReady = lambda run, report: None,
    on_progress: ProgressCallback = silent,
    on_note: OnNote = lambda lines: None,
    ranks: Ranks = ALONE,
) -> Hardened:
    """Take the steps that are left of a job, or of a plan on a loaded model.

    Args:
        job: a job, whose checkpoint is checked and loaded; or a plan, together with `model`.
        folder: of the run; by default the job's.
        start: `new` refuses a folder that holds a run, `resume` one that does not; `any` continues
            a run of the same plan and checkpoint if there is one.
        model: builds the model of a plan; it is entered when everything else is ready, and only
            where steps are left. Its text encoders and VAE may be dropped: see `previews`.
        previews: pictures while it runs. Without them, text encoders and VAE are dropped once the
            data are encoded, which frees their memory; with them they stay, as the VAE decodes the
            pictures.
        export: write the job's checkpoint, LoRA, card and curves at the end.
        overwrite: replace existing outputs.
        adopt: also continue a run that a host began on a loaded model. The caller has compared that
            model with the checkpoint.
        on_ready: called with the run's folder and what was checked, before the model is loaded.
        on_progress: raise from it to stop; the last complete outer step is then saved.
        on_note: called with lines to show: card, arithmetic and what is expected before the first
            step of a job, the time after it, and a warning where the card's memory was too small.
        ranks: this process must be the first; the others call `follow`.

    Raises:
        ConfigError: the check found problems.
        RunError: the folder cannot be used. DeviceMemoryError: a job's device is full.
    """
    folder = folder or _folder_of(job)
    begun = start == "resume" or (start == "any" and (folder / "plan.json").is_file())
    report = needed = None
    if not begun:
        report = _check(job, export=export, overwrite=overwrite, resuming=start == "any")
        job, needed = _decided(job, report, ranks)
    with (
        leaving_nothing(folder, lambda: _has_states(folder)),
        _open(folder, job, begun, adopt) as run,
    ):
        plan, warnings, seconds = run.plan, (), None
        steps_left = not run.finished
        if begun and (steps_left or export):
            report = _check(
                job, export=export, overwrite=overwrite, resuming=True, own=run.writing()
            )
            if isinstance(job, Job):
                job = replace(job, plan=plan)  # an `auto` is what the run began with
            job, needed = _decided(job, report, ranks, predicts=steps_left)
        on_ready(run, report)
        _compare_source(run, report, on_progress)
        if steps_left:
            if isinstance(job, Job):
                on_progress = _watched(job, run, needed, on_progress, on_note)
                ranks.share(("harden", to_json(job)))
                model = loaded_for(job, report, ranks)
            assert model is not None, "a plan alone needs a model"
            result = run_steps(model, plan, run, previews, on_progress, ranks)
            warnings, seconds = result.warnings, result.seconds
        else:
            ranks.share(None)
        if report is not None:
            warnings = tuple(dict.fromkeys((*report.warnings, *warnings)))
        outputs = None
        if export and isinstance(job, Job):
            outputs = finish_outputs(
                run, checkpoint=_recognised(job, report), output=Path(job.output),
                lora=lora_path_of(job), overwrite=overwrite, on_progress=on_progress,
            )  # fmt: skip
        records = tuple(StepRecord.from_json(record) for record in run.records())
        return Hardened(
            folder=run.path, plan=plan, records=records, warnings=warnings, seconds=seconds,
            outputs=outputs,
        )  # fmt: skip


def _has_states(folder: Path) -> bool:
    return any(folder.glob(f"**/{STATE}"))


def stored_job(folder: Path | str, device: str = "") -> Job:
    """Return the job of a run folder. device: to use instead of the stored one."""
    run = RunFolder.open(folder, read_only=True)
    if run.job is None:
        raise RunError(
            f"{run.path} was begun by a program, not from a checkpoint file: continue it there "
            "with resalign.resume(model, folder)"
        )
    return replace(run.job, device=device or run.job.device)


@contextmanager
def loaded_for(job: Job, report: CheckReport | None, ranks: Ranks) -> Iterator[Model]:
    """Load a job's checkpoint on this rank's device; explain an out-of-memory error."""
    from ..checkpoint.load import load_checkpoint
    from ..memory.weights import weight_types

    device = ranks.place(job.device)
    with explaining_full_memory(device):
        yield load_checkpoint(_recognised(job, report), device=device, **weight_types(job.plan))


def run_steps(
    model: AbstractContextManager[Model],
    plan: HardeningPlan,
    run: RunFolder | None,
    previews: PreviewSettings | None,
    on_progress: ProgressCallback,
    ranks: Ranks,
) -> Any:
    """Load the model and take the steps that are left. run: None but on the first rank."""
    from ..hardening import run as engine
    from ..model.quantised import quantised

    with model as loaded, ExitStack() as stack:
        loaded.spare_encoders = previews is None or not previews.every
        if previews is not None and previews.every:
            stack.enter_context(quantised(loaded, plan.quantization))  # as `harden` will have it
            drawing = Previews(previews, loaded, plan)
            drawing.begin(run.steps_saved if run else 0)
            on_progress = chain(on_progress, drawing)
        return engine.harden(loaded, plan, run_folder=run, on_progress=on_progress, ranks=ranks)


def _folder_of(job: Job | HardeningPlan) -> Path:
    if not isinstance(job, Job):
        raise ConfigError("a plan without a job needs a run folder")
    return run_folder_of(job)


def _check(
    job: Job | HardeningPlan,
    *,
    export: bool,
    overwrite: bool,
    resuming: bool,
    own: Collection[Path] = (),
) -> CheckReport | None:
    """Return what was found about a job that can run; a host has checked its own model."""
    if not isinstance(job, Job):
        return None
    report = check_job(job, overwrite=overwrite, resuming=resuming, exporting=export, own=own)
    if report.problems:
        raise ConfigError("; ".join(report.problems))
    return report


def _compare_source(
    run: RunFolder, report: CheckReport | None, on_progress: ProgressCallback
) -> None:
    """Record the SHA-256 of the checkpoint where a run begins; compare it where it continues."""
    if report is None or report.info is None:
        return
    begun = run.steps_saved > 0
    if begun and not run.source():  # begun by an older version
        return
    hashes = source_hashes(report.info, on_progress=on_progress)
    if not run.source():
        run.keep_source(hashes)
    run.check_source(hashes, report.info.path)


def _decided(
    job: Job | HardeningPlan, report: CheckReport | None, ranks: Ranks, *, predicts: bool = True
) -> tuple[Job | HardeningPlan, MemoryPlan | None]:
    """Put the device, and what it makes of every `auto`, into the job; predict its memory."""
    if report is None or not isinstance(job, Job):
        return job, None
    info = report.info
    if info is None or not predicts:
        return replace(job, device=report.device), None
    plan, needed = decide(
        job.plan, report.device, lambda plan: memory_needed(info, plan), ranks.count
    )
    return replace(job, device=report.device, plan=plan), needed


def _watched(
    job: Job,
    run: RunFolder,
    needed: MemoryPlan | None,
    on_progress: ProgressCallback,
    on_note: OnNote,
) -> ProgressCallback:
    """Say what the run expects of its device, and watch whether that holds."""
    records = run.records()[: run.steps_saved]
    on_note(opening_lines(job.plan, job.device, needed, records))
    if found := memory_warnings(needed, job.device):
        on_note([f"warning: {text}" for text in found])
    teller = TimeTeller(job.plan, records, on_note)
    return chain(on_progress, teller, SpillWatch(job.device, on_note))


def _open(folder: Path, job: Job | HardeningPlan, begun: bool, adopt: bool) -> RunFolder:
    if not begun:
        return RunFolder.create(folder, job)
    if not isinstance(job, Job):
        return RunFolder.open(folder, job)
    run = RunFolder.open(folder, job.plan)
    if run.job is None and adopt:
        run.job = adopt_job(run.path, run.plan, job)
    if run.job is None or Path(run.job.checkpoint) != Path(job.checkpoint):
        other = run.job.checkpoint if run.job else "a model that a program had loaded"
        run.close()
        raise RunError(
            f"{folder} holds a run on {other}, not on {job.checkpoint}: choose another run folder"
        )
    if run.job.parts != job.parts:
        run.close()
        raise RunError(
            f"{folder} holds a run with another text encoder or VAE: choose another run folder"
        )
    if run.job.prediction != job.prediction:
        stored = run.job.prediction or "as the file says"
        run.close()
        raise RunError(
            f"{folder} holds a run with another prediction ({stored}): choose another run folder"
        )
    return run


def _recognised(job: Job, report: CheckReport | None) -> Path | CheckpointInfo:
    """Return the checkpoint as the check recognised it; its path where it has changed since.

    A run takes hours, and the headers say where each tensor lies: they are compared before use.
    """
    from ..checkpoint.detect import detect
    from ..checkpoint.header import read_header

    path, info = Path(job.checkpoint), report.info if report else None
    if info and all(read_header(file) == header for file, header in info.headers.items()):
        return info
    if not (job.prediction or any(job.parts.values())):
        return path
    return detect(path, prediction=job.prediction, parts=job.parts)
