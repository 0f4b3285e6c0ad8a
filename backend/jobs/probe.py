"""A probe's job to its report, as the command line and the worker run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..parallel.ranks import ALONE, Ranks
from ..plan.probe import ORIGINAL, ProbeJob
from ..probe.folder import save_job
from ..probe.probe import run_probe
from ..probe.results import ProbeResult
from ..probe.subjects import subject_of
from ..probe.summarise import summarise
from ..probe.summary import ProbeSummary
from ..progress import ProgressCallback, silent
from ..report.build import ReportFiles, write_report


@dataclass(frozen=True, slots=True)
class Measured:
    """A probe as far as it got, with its report."""

    result: ProbeResult
    summary: ProbeSummary
    files: ReportFiles


def run_probe_job(
    job: ProbeJob,
    *,
    new: bool = False,
    on_progress: ProgressCallback = silent,
    ranks: Ranks = ALONE,
) -> Measured:
    """Run a probe, or go on with it, and write its report. new: the job is not kept yet."""
    result = measure(job, new=new, on_progress=on_progress, ranks=ranks)
    return report_of(result, Path(job.output))


def measure(
    job: ProbeJob,
    *,
    new: bool = False,
    on_progress: ProgressCallback = silent,
    ranks: Ranks = ALONE,
) -> ProbeResult:
    """Run a probe, or go on with it. The folder is the first rank's alone."""
    device = ranks.place(job.device)
    subjects = [
        subject_of(checkpoint, device, on_progress=on_progress) for checkpoint in job.checkpoints
    ]
    if new and ranks.first:
        save_job(job, [subject.info for subject in subjects])
    originals = {ORIGINAL: Path(job.checkpoints[0].path)}
    return run_probe(
        subjects, job.plan, folder=job.output, originals=originals, on_progress=on_progress,
        ranks=ranks,
    )  # fmt: skip


def report_of(result: ProbeResult, folder: Path) -> Measured:
    """Write the report of a probe into its folder."""
    files = write_report(result, folder, pictures=folder)
    return Measured(result, summarise(result), files)
