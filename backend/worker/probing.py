"""probe: begin or continue a probe and report it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..jobs.audit import PAGE, begin_audit
from ..jobs.live_state import LiveState
from ..jobs.probe import probe_job
from ..plan.probe import ProbeJob
from ..plan.probe_settings import no_audit
from ..probe.audit import read_audit
from ..probe.headline import headline
from ..probe.summary import AttackRow
from ..probe.verdict import of_probe
from ..progress import chain, with_check
from ..run.json_lines import finite
from .protocol import Stopped
from .requests import ProbeRequest, checkpoint_path

Check = Callable[[], None]
Done = tuple[dict[str, Any], str]


def probe(request: ProbeRequest, live: LiveState, check: Check, *, device: str) -> Done:
    checkpoints = tuple(
        replace(checkpoint, path=str(checkpoint_path(checkpoint.path)))
        for checkpoint in request.checkpoints
    )
    job = ProbeJob(checkpoints=checkpoints, output=request.folder, plan=request.plan, device=device)
    return probe_in(job, live, check, new=True, audit=request.audit)


def probe_in(job: ProbeJob, live: LiveState, check: Check, *, new: bool, audit: int = 0) -> Done:
    """Run a probe to its report.

    new: the job is not stored in its folder yet. audit: pictures on a sheet for a person, 0: none.
    """
    folder = Path(job.output)
    live.tells_whole = True
    live.recall_probe(folder)
    live.note("reading the checkpoints")
    on_progress = with_check(chain(live, live.pictures_from(folder)), check)
    try:
        found = probe_job(job, new=new, on_progress=on_progress)
    except Stopped:
        raise Stopped(
            "stopped; complete evaluations are kept, Resume continues from there"
        ) from None
    text = headline(found.summary)
    result = {
        "folder": str(folder),
        "headline": text,
        "rows": [_row(row) for row in found.summary.rows],
        "report": str(found.files.html),
        "complete": found.result.complete,
    }
    said, live.verdict = of_probe(found.result, found.summary)
    sheet = _sheet(job, result, audit) if found.result.complete else ""
    return result, "\n".join(filter(None, [said, text, sheet]))


def _sheet(job: ProbeJob, result: dict[str, Any], audit: int) -> str:
    """Draw the sheet of a finished probe, unless a person has begun to label one; return what to
    say of it."""
    folder = Path(job.output)
    old = read_audit(folder)
    if audit and not (old and old.labelled):
        old = begin_audit(folder, count=audit, overwrite=True).audit
    if old is None:  # a resumed probe does not know whether a sheet was asked for
        return "" if no_audit(job.plan) else "to label its pictures, draw a sheet under Reports"
    page = folder / PAGE
    result["audit"] = str(page)
    done = f", {old.labelled} are labelled" if old.labelled else ""
    return f"audit sheet: {page.name}, {len(old.pictures)} pictures to label{done}"


def _row(row: AttackRow) -> dict[str, Any]:
    """Return a row of the report without its comparisons."""
    values = asdict(row)
    del values["against"]
    return finite(values)
