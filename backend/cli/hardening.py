"""check, harden, resume: from a job to the files it ends in."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, RunError
from ..plan.file import to_json
from ..plan.job import Job
from .console import Console
from .jobs import job_of
from .ranks import follow, joined, telling

if TYPE_CHECKING:
    from ..parallel.ranks import Ranks
    from ..run.folder import RunFolder


def check(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.check import check_job

    report = check_job(job_of(args), overwrite=args.overwrite, memory=True, budget=args.budget)
    console.result(str(report), "check", **report.to_json())
    if report.problems:
        count = len(report.problems)
        console.error(f"{count} problem{'s' if count > 1 else ''} to mend before hardening")
        return 2
    return 0


def harden(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.check import run_folder_of
    from ..run.folder import RunFolder

    with joined(args, console) as ranks:
        if not ranks.first:
            return follow(ranks, console)
        job = job_of(args)
        job = replace(job, device=_ready(job, console, overwrite=args.overwrite))
        with RunFolder.create(run_folder_of(job), job) as run:
            return _run(job, run, console, ranks, overwrite=args.overwrite)


def resume(args: argparse.Namespace, console: Console) -> int:
    from ..probe.folder import read_job

    with joined(args, console) as ranks:
        if not ranks.first:
            return follow(ranks, console)
        probe = read_job(args.run_folder)
        if probe is not None:
            from .probing import run_job

            job = replace(probe, device=args.device or probe.device)
            return run_job(job, console, ranks)
        return _resume(args, console, ranks)


def _resume(args: argparse.Namespace, console: Console, ranks: Ranks) -> int:
    from ..run.folder import RunFolder

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
        return _run(job, run, console, ranks, overwrite=args.overwrite)


def _ready(job: Job, console: Console, *, overwrite: bool, resuming: bool = False) -> str:
    """Stop on any problem; returns the device that `auto` stands for."""
    from ..jobs.check import check_job

    report = check_job(job, overwrite=overwrite, resuming=resuming)
    if report.problems:
        raise ConfigError("; ".join(report.problems))
    console.note(str(replace(report, warnings=())))
    for warning in report.warnings:
        console.warning(warning)
    return report.device


def _run(job: Job, run: RunFolder, console: Console, ranks: Ranks, *, overwrite: bool) -> int:
    from ..jobs.check import lora_path_of
    from ..jobs.export import write_outputs
    from .written import tell

    if run.steps_saved < run.plan.outer_steps:
        ranks.share(("harden", to_json(job)))
        to_the_end(job, run, console, ranks)
    else:
        ranks.share(None)
    found = write_outputs(
        run, checkpoint=Path(job.checkpoint), output=Path(job.output), lora=lora_path_of(job),
        overwrite=overwrite, on_progress=console.progress,
    )  # fmt: skip
    tell(found, run, console)
    return 0


def to_the_end(job: Job, run: RunFolder | None, console: Console, ranks: Ranks) -> None:
    """Load the checkpoint and take the steps that are left. run: None but on the first rank."""

    from ..checkpoint.load import load_checkpoint
    from ..hardening import run as engine
    from ..memory.weights import weight_types

    console.note(f"loading {Path(job.checkpoint).name}")
    device = ranks.place(job.device)
    model = load_checkpoint(
        Path(job.checkpoint), device=device, spare_encoders=True, **weight_types(job.plan)
    )
    with _telling_how_to_go_on(run, device, ranks):
        result = engine.harden(
            model, job.plan, run_folder=run, on_progress=console.progress, ranks=ranks
        )
    console.note(f"hardened in {result.seconds:.0f} s")
    for warning in result.warnings:
        console.warning(warning)


@contextmanager
def _telling_how_to_go_on(run: RunFolder | None, device: str, ranks: Ranks) -> Iterator[None]:
    """An interrupt, a lost rank or a full device says where the run stands and what to do."""
    import torch

    from ..jobs.check import out_of_memory

    try:
        with telling(ranks, lambda: _how_to_go_on(run)):
            yield
    except torch.cuda.OutOfMemoryError as error:
        raise RunError(out_of_memory(device, error)) from error


def _how_to_go_on(run: RunFolder | None) -> str:
    if run is None:  # what is saved lies with the first rank
        return ""
    done = f" after step {run.steps_saved} of {run.plan.outer_steps}"
    return f"{done}; go on with: resalign resume {run.path}"
