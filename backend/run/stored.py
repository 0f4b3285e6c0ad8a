"""The plan and the job that a run folder belongs to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError, RunError
from ..plan.auto import decided_as
from ..plan.file import differences, from_json, plan_hash, to_json
from ..plan.hardening import HardeningPlan
from ..plan.job import Job
from .sealed import read_json, write_json
from .trust import MARK, marked


def key_of(plan: HardeningPlan) -> str:
    """Return the hash of a plan as it comes back from its file, where 1 for 1.0 is 1.0."""
    return plan_hash(from_json(HardeningPlan, to_json(plan), where="plan"))


def check_same_plan(path: Path, stored: HardeningPlan, plan: HardeningPlan) -> None:
    """Raise a RunError for another plan; an `auto` of either is what the other has."""
    plan = decided_as(plan, stored)
    stored = decided_as(stored, plan)
    if key_of(stored) != key_of(plan):
        fields = "; ".join(differences(to_json(stored), to_json(plan))[:5])
        raise RunError(
            f"{path} belongs to another plan ({fields}): choose another run folder, or resume it "
            "with its own plan"
        )


def read_plan(path: Path) -> HardeningPlan:
    try:
        return from_json(HardeningPlan, read_json(path / "plan.json"), where="plan")
    except ConfigError as error:
        raise RunError(f"{path / 'plan.json'} was written by another version: {error}") from None


def write_work(path: Path, plan: HardeningPlan, job: Job | None) -> None:
    """Write a run's plan, and its job if it has one."""
    write_json(path / "plan.json", to_json(plan))
    if job is not None:
        without_plan = {k: v for k, v in to_json(job).items() if k != "plan"}
        write_json(path / "job.json", marked(without_plan, key_of(plan)), key_of(plan))


def adopt(path: Path, plan: HardeningPlan, job: Job) -> Job:
    """Write the job by which a worker continues a run that a host began on a loaded model."""
    job = replace(job, plan=plan)
    write_work(path, plan, job)
    return job


def read_job(path: Path, plan: HardeningPlan) -> Job | None:
    if not (path / "job.json").exists():
        return None
    stored = read_json(path / "job.json", key_of(plan))
    stored.pop(MARK, None)
    try:
        return from_json(Job, {**stored, "plan": to_json(plan)})
    except ConfigError as error:
        raise RunError(f"{path / 'job.json'} was written by another version: {error}") from None
