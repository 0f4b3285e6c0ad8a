"""check, harden: from a plan or flags to the files that a run ends in."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..plan.job import Job
from .console import Console
from .harden_flags import job_of
from .probe_flags import with_parts
from .ranks import explaining_end, on_ranks

if TYPE_CHECKING:
    from ..jobs.check import CheckReport
    from ..jobs.harden import Start
    from ..parallel.ranks import Ranks
    from ..run.folder import RunFolder


def check(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.check import check_job
    from ..plan.file import is_probe_plan

    if args.plan and is_probe_plan(Path(args.plan)):
        return _check_probe(args, console)
    report = check_job(job_of(args), overwrite=args.overwrite, memory=True, budget=args.budget)
    console.result(str(report), "check", **report.to_json())
    return _problems(len(report.problems), "hardening", console)


def _check_probe(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.check_probe import check_probe_job
    from ..plan.file import load_probe_job

    job = load_probe_job(args.plan)
    checkpoints = with_parts(job.checkpoints, args)
    report = check_probe_job(
        replace(job, checkpoints=checkpoints, device=args.device or job.device)
    )
    console.result(str(report), "check", **report.to_json())
    return _problems(len(report.problems), "probing", console)


def _problems(count: int, before: str, console: Console) -> int:
    """Print the number of problems; return the exit code."""
    if count:
        console.error(f"{count} problem{'s' if count > 1 else ''} to fix before {before}")
    return 2 if count else 0


def harden(args: argparse.Namespace, console: Console) -> int:
    def run(ranks: Ranks) -> int:
        return harden_to_files(job_of(args), None, "new", args.overwrite, console, ranks)

    return on_ranks(run, args, console)


def harden_to_files(
    job: Job, folder: Path | None, start: Start, overwrite: bool, console: Console, ranks: Ranks
) -> int:
    """Run a job to its end and show what it wrote; on an end before that, say how to continue."""
    from ..jobs.harden import harden_job
    from .results import show_outputs

    begun: list[RunFolder] = []
    warned: list[str] = []

    def show_start(run: RunFolder, report: CheckReport | None) -> None:
        begun.append(run)
        if report is not None:
            console.note(str(replace(report, warnings=())))
            for warning in report.warnings:
                warned.append(warning)
                console.warning(warning)
        left = run.steps_saved < run.plan.outer_steps
        if start == "resume" and run.steps_saved:
            console.note(f"continuing after step {run.steps_saved} of {run.plan.outer_steps}")
        if left:
            console.note(f"loading {Path(job.checkpoint).name}")

    with explaining_end(ranks, lambda: _how_to_continue(begun, folder)):
        found = harden_job(
            job, folder=folder, start=start, export=True, overwrite=overwrite,
            on_ready=show_start, on_progress=console.progress,
            on_note=lambda lines: show_lines(lines, console), ranks=ranks,
        )  # fmt: skip
    if found.seconds is not None:
        console.note(f"hardened in {found.seconds:.0f} s")
    for warning in found.warnings:
        if warning not in warned:
            console.warning(warning)
    assert found.outputs is not None
    show_outputs(found.outputs, console)
    return 0


def show_lines(lines: list[str], console: Console) -> None:
    """Show what a run says about itself."""
    for line in lines:
        if line.startswith("warning: "):
            console.warning(line.removeprefix("warning: "))
        else:
            console.note(line)


def _how_to_continue(begun: list[RunFolder], folder: Path | None) -> str:
    if not begun:
        return f"; continue with: resalign resume {folder}" if folder else ""
    run = begun[0]
    done = f" after step {run.steps_saved} of {run.plan.outer_steps}"
    return f"{done}; continue with: resalign resume {run.path}"
