"""probe, report, compare: what checkpoints generate after others have worked on them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, RunError
from ..plan.probe import ProbeJob
from ..plan.probe_settings import too_few_steps
from .asking import asker
from .console import Console
from .probe_flags import probe_job_of
from .ranks import explaining_end, on_ranks

if TYPE_CHECKING:
    from ..jobs.probe import Probed
    from ..parallel.ranks import Ranks


def probe(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.device import resolve_device
    from ..jobs.resume import allow_commands

    def run(ranks: Ranks) -> int:
        job = probe_job_of(args)
        for checkpoint in job.checkpoints:
            if not Path(checkpoint.path).exists():
                raise ConfigError(f"{checkpoint.name}: {checkpoint.path} does not exist")
        if Path(args.checkpoints[0]).suffix.lower() in (".toml", ".json"):
            allow_commands(job.plan, f"{args.checkpoints[0]} is a plan file", asker(args))
        job = replace(job, device=resolve_device(job.device))
        return probe_to_report(job, console, ranks, new=True, open_page=args.open)

    return on_ranks(run, args, console)


def probe_to_report(
    job: ProbeJob, console: Console, ranks: Ranks, *, new: bool = False, open_page: bool = False
) -> int:
    """Begin or continue a probe and show its report. new: the job is not stored yet."""
    from ..jobs.probe import probe_job

    if new and (few := too_few_steps(job.plan)):
        console.note(f"warning: {few}")
    console.note("reading the checkpoints' SHA-256")
    how = f"; complete evaluations are kept, continue with: resalign resume {job.output}"
    with explaining_end(ranks, lambda: how):
        found = probe_job(job, new=new, on_progress=console.progress, ranks=ranks)
    return _show(found, console, open_page)


def report(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.probe import report_job

    found = report_job(
        Path(args.run_folder), least_quality=args.least_quality, least_effect=args.least_effect
    )
    return _show(found, console, args.open)


def compare(args: argparse.Namespace, console: Console) -> int:
    from ..report.compare import compare_reports

    paths = [_report_json(Path(path)) for path in args.reports]
    page = compare_reports(paths, Path(args.output))
    console.result(f"comparison  {page}", "done", page=str(page))
    if args.open:
        _open(page)
    return 0


def _show(found: Probed, console: Console, open_page: bool) -> int:
    from ..probe.headline import headline
    from ..probe.verdict import of_models

    files, complete = found.files, found.result.complete
    verdicts = [said for said, _ in of_models(found.result, found.summary)]
    text = [*verdicts, "", headline(found.summary), "", f"report  {files.html}"]
    if not complete:
        text.append("The probe is not finished: rows are missing.")
    console.result(
        "\n".join(text), "done", html=str(files.html), markdown=str(files.markdown),
        report=str(files.json), complete=complete, verdicts=verdicts,
        summary=found.summary.to_json(),
    )  # fmt: skip
    if open_page:
        _open(files.html)
    return 0


def _report_json(path: Path) -> Path:
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"{path} does not exist: `resalign report FOLDER` writes it")
    return path


def _open(page: Path) -> None:
    import webbrowser

    webbrowser.open(page.resolve().as_uri())
