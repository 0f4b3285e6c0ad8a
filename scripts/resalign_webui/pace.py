"""How fast this machine works on each checkpoint, as the jobs of this tab have measured it.

`pace.json` in the tab's folder has one entry for each checkpoint and resolution, apart for CPU and
GPU, written when a hardening ends. So the durations of the form are those of one's own model and
machine after its first job. What a job measured that was not finished counts only until one was,
and only if it came to train: a few pictures, drawn while everything was still loading, promised a
tenth of the time or twice as much. Without torch; a damaged file is the same as none.
"""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

from ...backend.errors import ResAlignError
from ...backend.plan.durations import Pace, pace_from
from ...backend.text import json_text

PACE = "pace.json"
_MOST = 200  # entries that are kept


def remember(folder: Path, state: dict[str, Any], today: date | None = None) -> None:
    """Keep what a hardening job has measured. folder: of the tab; state: the job's last."""
    measured = state.get("pace")
    run = (state.get("request") or {}).get("run_folder")
    if not isinstance(measured, dict) or pace_from(measured) is None or not run:
        return
    checkpoint, resolution, device = _run(Path(run))
    if not checkpoint:
        return
    kept, earlier = _others(folder, checkpoint, resolution, device)
    finished = state.get("status") == "done"
    if not finished and (earlier.get("finished") or "training" not in measured):
        return
    entry = {
        **earlier,  # a job that was resumed draws nothing
        "checkpoint": checkpoint, "resolution": resolution, "device": device,
        "day": (today or date.today()).isoformat(), "finished": finished,
        **{name: measured[name] for name in ("drawing", "training") if name in measured},
    }  # fmt: skip
    _write(folder, [*kept, entry])


def remember_probe(
    folder: Path, checkpoint: str, resolution: int, device: str, pace: Pace,
    today: date | None = None,
) -> None:  # fmt: skip
    """Keep the pace of a probe by itself: it also scores, mixes and loads, and other parts of it
    wait for each other."""
    kept, earlier = _others(folder, _real(checkpoint), resolution, device)
    entry = {
        **earlier, "checkpoint": _real(checkpoint), "resolution": resolution, "device": device,
        "probe": {"drawing": pace.drawing, "training": pace.training},
        "probe_day": (today or date.today()).isoformat(),
    }  # fmt: skip
    _write(folder, [*kept, entry])


def _others(
    folder: Path, checkpoint: str, resolution: int, device: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the entries but that of a checkpoint, and that one."""
    entries = _entries(folder)
    kept = [one for one in entries if _key(one) != (checkpoint, resolution, device == "cpu")]
    return kept, next((one for one in reversed(entries) if one not in kept), {})


def _write(folder: Path, entries: list[dict[str, Any]]) -> None:
    path = folder / PACE
    temporary = path.with_name(PACE + ".tmp")
    folder.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(entries[-_MOST:], indent=1), encoding="utf-8")
    os.replace(temporary, path)


def known(
    folder: Path,
    checkpoint: str,
    resolution: int | None = 0,
    device: str = "auto",
    *,
    probe: bool = False,
) -> tuple[Pace, str] | None:
    """Return the pace for a checkpoint, and its day and device: `2026-11-28, cuda`.

    checkpoint: a path, or `demo`. resolution: of the plan, 0 for the checkpoint's own, None for
    any. device: the one to be used: what a GPU has measured says nothing of a CPU. probe: of a
    probe, where one was measured.
    """
    wanted = _real(checkpoint)
    entries = _entries(folder)[::-1]
    if probe:  # those of a probe first
        entries.sort(key=lambda entry: not isinstance(entry.get("probe"), dict))
    for entry in entries:
        own = entry.get("probe") if probe else None
        pace = pace_from(own if isinstance(own, dict) else entry)
        day = entry.get("probe_day" if isinstance(own, dict) else "day")
        if resolution not in (None, entry.get("resolution")):
            continue
        if device != "auto" and _on_cpu(entry) not in (None, device == "cpu"):
            continue
        if entry.get("checkpoint") == wanted and pace is not None:
            device = str(entry.get("device") or "")
            told = ", ".join(filter(None, [str(day or ""), device]))
            return pace, told[:60]
    return None


def _key(entry: dict[str, Any]) -> tuple[Any, Any, bool]:
    return entry.get("checkpoint"), entry.get("resolution"), _on_cpu(entry) is True


def _on_cpu(entry: dict[str, Any]) -> bool | None:
    """Return whether a CPU was measured; None where the entry does not say."""
    device = entry.get("device")
    return device == "cpu" if device else None


def _real(checkpoint: str) -> str:
    """Return a checkpoint's path without links; a run of the demo knows the path alone."""
    if checkpoint == "demo":
        from ...backend.demo.plans import CHECKPOINT

        return os.path.realpath(CHECKPOINT)
    return os.path.realpath(checkpoint) if checkpoint else ""


def _entries(folder: Path) -> list[dict[str, Any]]:
    try:
        found = json_text.read(folder / PACE)
    except (OSError, ValueError, ResAlignError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _run(folder: Path) -> tuple[str, int, str]:
    """Return checkpoint, resolution and device of a run's folder."""
    try:
        about, plan = (json_text.read(folder / name) for name in ("job.json", "plan.json"))
        device = str(about.get("device") or "")
        return _real(str(about.get("checkpoint", ""))), int(plan.get("resolution") or 0), device
    except (OSError, ValueError, TypeError, AttributeError, ResAlignError):
        return "", 0, ""
