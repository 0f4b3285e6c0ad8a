"""resume: continue the hardening run or the probe of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..jobs.live_state import LiveState
from ..jobs.resume import job_in
from ..plan.probe import ProbeJob
from .requests import ResumeRequest

Check = Callable[[], None]
Done = tuple[dict[str, Any], str]


def resume(request: ResumeRequest, live: LiveState, check: Check, *, device: str) -> Done:
    folder = Path(request.run_folder)
    job = job_in(folder, device, allow=lambda question: request.run_commands)
    if isinstance(job, ProbeJob):
        from .probing import probe_in

        live.state["kind"] = "probe"
        return probe_in(job, live, check, new=False)
    from .hardening import harden_in

    live.state["kind"] = "harden"
    return harden_in(folder, job, "resume", request, live, check)
