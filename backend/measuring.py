"""A probe's job to its report, as the command line and the worker run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .probe.folder import save_job
from .probe.probe import run_probe
from .probe.subjects import subject_of
from .probe.summary import ProbeSummary, summarise
from .probe_config import ORIGINAL, ProbeJob
from .probe_results import ProbeResult
from .progress import ProgressCallback, silent
from .report.build import ReportFiles, write_report


@dataclass(frozen=True, slots=True)
class Measured:
    """A probe as far as it got, with its report."""

    result: ProbeResult
    summary: ProbeSummary
    files: ReportFiles


def run_probe_job(
    job: ProbeJob, *, new: bool = False, on_progress: ProgressCallback = silent
) -> Measured:
    """Run a probe, or go on with it, and write its report. new: the job is not kept yet."""
    subjects = [
        subject_of(checkpoint, job.device, on_progress=on_progress)
        for checkpoint in job.checkpoints
    ]
    if new:
        save_job(job, [subject.info for subject in subjects])
    originals = {ORIGINAL: Path(job.checkpoints[0].path)}
    result = run_probe(
        subjects, job.plan, folder=job.output, originals=originals, on_progress=on_progress
    )
    return report_of(result, Path(job.output))


def report_of(result: ProbeResult, folder: Path) -> Measured:
    """Write the report of a probe into its folder."""
    files = write_report(result, folder, pictures=folder)
    return Measured(result, summarise(result), files)
