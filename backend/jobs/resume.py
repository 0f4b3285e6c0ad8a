"""Recognises what a folder to resume holds, and asks before it trusts the folder of a stranger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import RunError
from ..plan.job import Job
from ..plan.probe import ProbeJob, ProbePlan
from ..probe.folder import is_ours, read_job
from ..run.folder import RunFolder
from ..text.regular_file import is_special
from .check import lora_path_of
from .harden import stored_job

Allow = Callable[[str], bool]  # takes a question, returns the answer


def job_in(
    folder: Path | str,
    device: str = "",
    *,
    output: str = "",
    allow: Allow = lambda question: False,
) -> Job | ProbeJob:
    """Return the job stored in a folder.

    Args:
        device: to use instead of the stored one.
        output: where to write the hardened checkpoint instead, with its LoRA beside it.
        allow: asked before a command is run that this user did not give on this machine.

    Raises:
        RunError: the folder was not begun by this user on this machine, and would run a command,
            write outside of where it lies, or leads elsewhere by links.
    """
    folder = Path(folder)
    probe = read_job(folder)
    if probe is not None:
        if not is_ours(folder):
            _refuse_links(folder)
            allow_commands(probe.plan, f"{folder} was not begun by you on this machine", allow)
        return replace(probe, device=device or probe.device)
    job = replace(stored_job(folder, device), run_folder=str(folder.absolute()))
    if output:
        return replace(job, output=str(Path(output).absolute()), lora="")
    if not RunFolder.open(folder, read_only=True).is_ours:
        _refuse_links(folder)
        _refuse_elsewhere(folder, job)
    return job


def allow_commands(plan: ProbePlan, why: str, allow: Allow) -> None:
    """Ask before a plan's scorers run commands. why: the beginning of the question."""
    for scorer in plan.scorers:
        if scorer.command:
            command = " ".join(scorer.command)
            if not allow(f"{why}, and it would run the command {command!r}"):
                raise RunError(
                    f"{why}, and it would run the command {command!r}: if you know what that does, "
                    "allow it with `run_commands` (--run-commands)"
                )


def _refuse_elsewhere(folder: Path, job: Job) -> None:
    """Raise unless the outputs lie in the run's folder or beside it."""
    here = folder.absolute()
    for path in (Path(job.output), lora_path_of(job)):
        if path.absolute().parent not in (here, here.parent) or ".." in path.parts:
            raise RunError(
                f"{folder} was not begun by you on this machine, and it would write to {path}: "
                "say where to write with --output FILE"
            )


def _refuse_links(folder: Path) -> None:
    """Raise if a stranger's folder has links, through which files elsewhere would be written, or
    pipes, which would be read for ever."""
    for path in folder.rglob("*"):
        if is_special(path):
            raise RunError(f"{path} is a pipe or device: remove it first")
        if path.is_symlink():
            raise RunError(
                f"{path} is a link, and {folder} was not begun by you on this machine: remove the "
                "link first"
            )
