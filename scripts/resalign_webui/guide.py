"""The path from hardening to a release: which page follows a job, and what is chosen there.

Harden, Probe, Export, Reports: each job that is done offers the page of the next one, on which the
run, report or file that it made is then chosen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .runs import Probe, Run

HARDEN, PROBE, EXPORT, REPORTS = "Harden", "Probe", "Export", "Reports"
WAY = (HARDEN, PROBE, EXPORT, REPORTS)  # in this order


@dataclass(frozen=True, slots=True)
class Step:
    """page: the next one. label: of the button. chosen: values of that page's lists by name."""

    page: str
    label: str
    chosen: Mapping[str, str] = field(default_factory=dict)


def next_step(
    state: Mapping[str, Any] | None,
    runs: Sequence[Run],
    probes: Sequence[Probe],
    label_of: Callable[[str], str],
) -> Step | None:
    """Return what follows the most recent job; None if it is not done, or was the last step.

    label_of: the label of a checkpoint's path in the lists; empty if they do not have it.
    """
    if not state or state.get("status") != "done":
        return None
    request = state.get("request") or {}
    kind, folder = state.get("job") or state.get("kind"), _path(request.get("run_folder"))
    made = next((run for run in runs if run.folder == folder), None)
    if kind in ("harden", "resume") and made is not None:
        return _measure(made)
    measured = _path(request.get("folder")) or folder  # a probe that was resumed has the latter
    probe = next((one for one in probes if one.folder == measured and one.report), None)
    if kind in ("probe", "resume") and probe is not None:
        return _after_probe(state, runs, probe, label_of)
    if kind == "export":
        probe = next((p for p in probes if p.folder == _path(request.get("probe"))), None)
        if probe is not None:
            return _pack(probe, label_of(str(request.get("output") or "")), state)
        return _measure(made) if made is not None else None
    return None


def title(page: str) -> str:
    """Return a page's title; those of the path have their number."""
    return f"{WAY.index(page) + 1} {page}" if page in WAY else page


def _measure(run: Run) -> Step:
    # Named: a list of other runs, which were stopped, stands below the button
    return Step(PROBE, f"Next: measure {run.name}", {"probe_run": run.name})


def _after_probe(
    state: Mapping[str, Any], runs: Sequence[Run], probe: Probe, label_of: Callable[[str], str]
) -> Step:
    """A run that was measured is exported with its report; an exported file is packed."""
    request = state.get("request") or {}
    paths = [str(one.get("path", "")) for one in request.get("checkpoints") or ()]
    run = next((run for run in runs if str(run.folder) in paths), None)
    if run is None and len(paths) > 1 and (label := label_of(paths[1])):
        return _pack(probe, label, state)
    chosen = {"export_probe": probe.name, **({"export_run": run.name} if run else {})}
    return Step(EXPORT, "Next: save it as a checkpoint", chosen)


def _pack(probe: Probe, checkpoint: str, state: Mapping[str, Any]) -> Step:
    """A pack documents every model; only one of which nothing bad is known is for a release."""
    doubtful = state.get("verdict") == "doubtful"
    label = "Next: pack what was measured" if doubtful else "Next: pack it for a release"
    chosen = {"report": probe.name, **({"pack_checkpoint": checkpoint} if checkpoint else {})}
    return Step(REPORTS, label, chosen)


def _path(text: Any) -> Path | None:
    return Path(text) if isinstance(text, str) and re.search(r"\S", text) else None


def none_finished(
    kind: str, page: str, unfinished: Sequence[Run | Probe], state: Mapping[str, Any]
) -> str:
    """Say how to come to a finished run or probe. state: of the last job."""
    request = state.get("request") or {}
    working = {str(request.get(name)) for name in ("run_folder", "folder")}
    said = f"No finished {kind} yet."
    if state.get("status") == "running" and any(str(e.folder) in working for e in unfinished):
        return f"{said} One is at work: wait for its end."
    if not unfinished:
        return f"{said} Make one on the page {page}."
    names = ", ".join(entry.name for entry in unfinished[:3])
    return (
        f"{said} Not finished: {names}. To continue, choose it in the list of what was stopped, "
        "below Cancel, and press Resume."
    )
