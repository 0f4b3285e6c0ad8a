"""The worker's jobs that make a run: harden, resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.load import load_checkpoint
from ..errors import ConfigError, RunError
from ..hardening import run as engine
from ..jobs.check import check_job, out_of_memory
from ..jobs.live_state import LiveState
from ..jobs.previews import Previewing
from ..memory.weights import weight_types
from ..model.quantised import quantised
from ..plan.job import Job
from ..probe.folder import read_job
from ..progress import Progress
from ..run.folder import RunFolder
from ..run.records import StepRecord
from .protocol import Stopped, watching
from .requests import HardenRequest, ResumeRequest, checkpoint_path

Check = Callable[[], None]
Done = tuple[dict[str, Any], str]


def harden(request: HardenRequest, live: LiveState, check: Check, *, device: str) -> Done:
    folder, source = Path(request.run_folder), checkpoint_path(request.checkpoint)
    # Where the command line's `resume` and a host's export find what they need.
    output = folder / ("hardened" if source.is_dir() else "hardened.safetensors")
    job = Job(
        checkpoint=str(source), output=str(output), plan=request.plan, run_folder=str(folder),
        device=device,
    )  # fmt: skip
    begun = (folder / "plan.json").is_file()
    warnings = () if begun else _checked(job)
    with RunFolder.open(folder, job.plan) if begun else RunFolder.create(folder, job) as run:
        if run.job is None or Path(run.job.checkpoint) != source:
            other = run.job.checkpoint if run.job else "a model that a program had loaded"
            raise RunError(
                f"{folder} holds a run on {other}, not on {source}: choose another run folder"
            )
        return _to_the_end(run, replace(run.job, device=device), request, live, check, warnings)


def resume(request: ResumeRequest, live: LiveState, check: Check, *, device: str) -> Done:
    folder = Path(request.run_folder)
    probe = read_job(folder)
    if probe is not None:
        from .drawing import run_probe

        live.state["kind"] = "probe"
        return run_probe(replace(probe, device=device), live, check, new=False)
    live.state["kind"] = "harden"
    with RunFolder.open(folder) as run:
        if run.job is None:
            raise RunError(f"{folder} was begun by a program: continue it there")
        return _to_the_end(run, replace(run.job, device=device), request, live, check)


def _checked(job: Job) -> tuple[str, ...]:
    """The warnings of a job that can be run; a ConfigError with all problems of one that cannot."""
    report = check_job(job, resuming=True, exporting=False)
    if report.problems:
        raise ConfigError("; ".join(report.problems))
    return report.warnings


def _to_the_end(
    run: RunFolder,
    job: Job,
    request: HardenRequest | ResumeRequest,
    live: LiveState,
    check: Check,
    warnings: tuple[str, ...] = (),
) -> Done:
    """Load the checkpoint and take the steps that are left."""
    total, done = run.plan.outer_steps, run.steps_saved
    live.state.update(step=done, total=total)
    if done < total:
        warnings = warnings or _checked(job)
        live.recall(_past(run, done))
        live.note(f"loading {Path(job.checkpoint).name}")
        try:
            warnings += _work(run, job, request, live, check)
        except Stopped:
            raise Stopped(
                f"stopped after step {run.steps_saved} of {total}; Resume goes on from there"
            ) from None
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryError(out_of_memory(job.device, error)) from error
    last = StepRecord.from_json(run.records()[-1]).values()
    result = {
        "run_folder": str(run.path),
        "steps": total,
        "concepts": [concept.name for concept in run.plan.concepts],
        "last": {name: round(value, 6) for name, value in last.items()},
        "warnings": list(dict.fromkeys(warnings)),
    }
    return result, f"hardened in {total} step{'s' * (total > 1)}"


def _work(
    run: RunFolder, job: Job, request: HardenRequest | ResumeRequest, live: LiveState, check: Check
) -> tuple[str, ...]:
    model = load_checkpoint(Path(job.checkpoint), device=job.device, **weight_types(run.plan))
    check()
    previews = Previewing(
        watching(live, check), live.picture, check, model, run.plan, request.preview_every,
        request.preview_prompt,
    )  # fmt: skip
    with quantised(model, run.plan.quantization):  # what it is loaded for: the device has no other
        previews.begin(run.steps_saved)
        return engine.harden(model, run.plan, run_folder=run, on_progress=previews).warnings


def _past(run: RunFolder, steps: int) -> list[Progress]:
    """What the saved steps told, for the curves."""
    records = [StepRecord.from_json(record) for record in run.records()[:steps]]
    total = run.plan.outer_steps
    return [Progress(stage="harden", step=r.step, total=total, values=r.values()) for r in records]
