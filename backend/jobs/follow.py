"""Job of a rank other than the first: receive the first rank's job and take part in it."""

from __future__ import annotations

from typing import Any

from ..parallel.ranks import Ranks
from ..plan.file import from_json
from ..plan.job import Job
from ..plan.probe import ProbeJob
from ..progress import ProgressCallback, silent


def follow(ranks: Ranks, *, on_progress: ProgressCallback = silent) -> None:
    """Wait for the first rank's job and do this rank's share of it; return when it is done."""
    work: tuple[str, dict[str, Any]] | None = ranks.share(None)
    if work is None:  # nothing is left to do
        return
    kind, fields = work
    if kind == "probe":
        from .probe import probe_files

        probe_files(from_json(ProbeJob, fields), on_progress=on_progress, ranks=ranks)
        return
    from .harden import loaded_for, run_steps

    job = from_json(Job, fields)
    run_steps(loaded_for(job, None, ranks), job.plan, None, None, on_progress, ranks)
