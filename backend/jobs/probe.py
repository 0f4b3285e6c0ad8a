"""Probe checkpoint files, or models that a host has loaded, and write the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint.info import CheckpointInfo
from ..errors import ConfigError, RunError
from ..parallel.ranks import ALONE, Ranks
from ..plan.attack import ORIGINAL
from ..plan.file import to_json
from ..plan.probe import ProbeJob, ProbePlan
from ..probe.folder import EVALUATIONS, save_job
from ..probe.former_names import as_stored
from ..probe.probe import run_probe
from ..probe.results import ProbeResult
from ..probe.results_io import read_probe
from ..probe.subjects import FileSubject, Subject, subject_of
from ..probe.summarise import summarise
from ..probe.summary import ProbeSummary
from ..progress import ProgressCallback, silent
from ..report.build import ReportFiles, write_report
from ..run.files import leaving_nothing
from .check_probe import check_checkpoints, check_probe_job


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe as far as it got, with its report."""

    result: ProbeResult
    summary: ProbeSummary
    files: ReportFiles


def probe_job(
    job: ProbeJob | ProbePlan,
    *,
    folder: Path | None = None,
    subjects: Sequence[Subject] | None = None,
    original: Path | CheckpointInfo | None = None,
    new: bool = False,
    on_progress: ProgressCallback = silent,
    ranks: Ranks = ALONE,
) -> Probed:
    """Begin or continue a probe and write its report; complete evaluations are kept.

    Args:
        job: a job, whose checkpoints are loaded; or a plan, with `folder` and `subjects`.
        subjects: the models under test, the original first.
        original: the checkpoint of the first subject, for merges with it.
        new: the job is not stored in the folder yet.
        ranks: this process must be the first; the others call `follow`.
    """
    if isinstance(job, ProbeJob):
        job = replace(job, plan=as_stored(job.plan, Path(job.output)))
        check_before(job, new)
        ranks.share(("probe", to_json(job)))
        output = Path(job.output)
        with leaving_nothing(output, (output / EVALUATIONS).exists):
            result = probe_files(job, new=new, on_progress=on_progress, ranks=ranks)
        return _reported(result, Path(job.output))
    assert folder is not None and subjects is not None, "a plan alone needs folder and subjects"
    originals = {ORIGINAL: original} if original else None
    result = run_probe(
        subjects,
        as_stored(job, folder),
        folder=folder,
        originals=originals,
        on_progress=on_progress,
        ranks=ranks,
    )
    return _reported(result, folder)


def check_before(job: ProbeJob, new: bool) -> None:
    """Raise a ConfigError with everything that is wrong with a job; of an old one's files only."""
    problems: list[str] = []
    if new:
        problems += check_probe_job(job).problems
    else:
        check_checkpoints(job.checkpoints, problems)
    if problems:
        raise ConfigError("; ".join(problems))


def probe_files(
    job: ProbeJob,
    *,
    new: bool = False,
    on_progress: ProgressCallback = silent,
    ranks: Ranks = ALONE,
) -> ProbeResult:
    """Run a job's probe on this rank, without a report; only the first rank uses the folder."""
    device = ranks.place(job.device)
    subjects = [
        subject_of(checkpoint, device, on_progress=on_progress) for checkpoint in job.checkpoints
    ]
    if new and ranks.first:
        save_job(job, [subject.info for subject in subjects])
    first = subjects[0]
    originals = {ORIGINAL: first.checkpoint} if isinstance(first, FileSubject) else None
    return run_probe(
        subjects, job.plan, folder=job.output, originals=originals, on_progress=on_progress,
        ranks=ranks,
    )  # fmt: skip


def report_job(
    folder: Path, *, least_quality: float | None = None, least_effect: float | None = None
) -> Probed:
    """Write the report of a probe as it stands.

    least_quality, least_effect: thresholds of what counts, in place of the plan's.
    """
    result = read_probe(folder)
    if not result.evaluations:
        raise RunError(f"{folder} holds no evaluation yet: continue it with `resalign resume`")
    given = {"least_quality": least_quality, "least_effect": least_effect}
    changes = {name: value for name, value in given.items() if value is not None}
    counting = replace(result.plan.counting, **changes)
    result = replace(result, plan=replace(result.plan, counting=counting))
    return _reported(result, folder)


def _reported(result: ProbeResult, folder: Path) -> Probed:
    files = write_report(result, folder, pictures=folder)
    return Probed(result, summarise(result), files)
