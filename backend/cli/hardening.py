"""check, harden, resume: from a job to the files it ends in."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Job
from ..errors import ConfigError, RunError
from .console import Console
from .jobs import job_of

if TYPE_CHECKING:
    from ..run_folder import RunFolder


def check(args: argparse.Namespace, console: Console) -> int:
    from ..check import check_job

    report = check_job(job_of(args), overwrite=args.overwrite)
    console.result(str(report), "check", **report.to_json())
    if report.problems:
        count = len(report.problems)
        console.error(f"{count} problem{'s' if count > 1 else ''} to mend before hardening")
        return 2
    return 0


def harden(args: argparse.Namespace, console: Console) -> int:
    from ..check import run_folder_of
    from ..run_folder import RunFolder

    job = job_of(args)
    job = replace(job, device=_ready(job, console, overwrite=args.overwrite))
    with RunFolder.create(run_folder_of(job), job) as run:
        return _run(job, run, console, overwrite=args.overwrite)


def resume(args: argparse.Namespace, console: Console) -> int:
    from ..probe.folder import read_job
    from ..run_folder import RunFolder

    probe = read_job(args.run_folder)
    if probe is not None:
        from .probing import run_job

        return run_job(replace(probe, device=args.device or probe.device), console)
    with RunFolder.open(args.run_folder) as run:
        if run.job is None:
            raise RunError(
                f"{run.path} was begun by a program, not by this command: continue it there with "
                "resalign.resume(model, folder)"
            )
        job = replace(run.job, device=args.device or run.job.device)
        job = replace(job, device=_ready(job, console, overwrite=args.overwrite, resuming=True))
        if run.steps_saved:
            console.note(f"continuing after step {run.steps_saved} of {run.plan.outer_steps}")
        return _run(job, run, console, overwrite=args.overwrite)


def _ready(job: Job, console: Console, *, overwrite: bool, resuming: bool = False) -> str:
    """Stop on any problem; returns the device that `auto` stands for."""
    from ..check import check_job

    report = check_job(job, overwrite=overwrite, resuming=resuming)
    if report.problems:
        raise ConfigError("; ".join(report.problems))
    console.note(str(replace(report, warnings=())))
    for warning in report.warnings:
        console.warning(warning)
    return report.device


def _run(job: Job, run: RunFolder, console: Console, *, overwrite: bool) -> int:
    from ..check import lora_path_of
    from ..outputs import write_outputs
    from .written import tell

    if run.steps_saved < run.plan.outer_steps:
        _to_the_end(job, run, console)
    found = write_outputs(
        run, checkpoint=Path(job.checkpoint), output=Path(job.output), lora=lora_path_of(job),
        overwrite=overwrite, on_progress=console.progress,
    )  # fmt: skip
    tell(found, run, console)
    return 0


def _to_the_end(job: Job, run: RunFolder, console: Console) -> None:
    """Load the checkpoint and take the steps that are left."""
    import torch

    from .. import harden as engine
    from ..check import needs_fp32
    from ..checkpoint.load import load_checkpoint

    dtype = torch.float32 if needs_fp32(job.plan) else None
    console.note(f"loading {Path(job.checkpoint).name}")
    model = load_checkpoint(Path(job.checkpoint), device=job.device, dtype=dtype)
    with _telling_how_to_go_on(run, job.device):
        result = engine.harden(model, run.plan, run_folder=run, on_progress=console.progress)
    console.note(f"hardened in {result.seconds:.0f} s")
    for warning in result.warnings:
        console.warning(warning)


@contextmanager
def _telling_how_to_go_on(run: RunFolder, device: str) -> Iterator[None]:
    """An interrupt or a full device says where the run stands and what to do."""
    import torch

    from ..check import out_of_memory

    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted after step {run.steps_saved} of {run.plan.outer_steps}; go on with: "
            f"resalign resume {run.path}"
        ) from None
    except torch.cuda.OutOfMemoryError as error:
        raise RunError(out_of_memory(device, error)) from error
