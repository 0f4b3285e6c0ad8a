"""Recognises what a folder to resume holds: a hardening run or a probe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..plan.job import Job
from ..plan.probe import ProbeJob
from ..probe.folder import read_job
from .harden import stored_job


def job_in(folder: Path | str, device: str = "") -> Job | ProbeJob:
    """Return the job stored in a folder. device: to use instead of the stored one."""
    probe = read_job(folder)
    if probe is not None:
        return replace(probe, device=device or probe.device)
    return stored_job(folder, device)
