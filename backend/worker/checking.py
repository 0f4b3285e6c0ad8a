"""The worker's job that runs nothing: check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..jobs.check import check_job
from ..jobs.live_state import LiveState
from ..plan.job import Job
from .requests import CheckRequest, checkpoint_path

Check = Callable[[], None]
Done = tuple[dict[str, Any], str]


def check(request: CheckRequest, live: LiveState, check: Check, *, device: str) -> Done:
    """All that can be known before any weight is loaded; the memory takes seconds to minutes."""

    def tell(changes: str) -> None:
        check()
        live.note(f"predicting the memory: {changes}")

    folder, source = Path(request.run_folder), checkpoint_path(request.checkpoint)
    job = Job(
        checkpoint=str(source), output=str(folder / "hardened.safetensors"), plan=request.plan,
        run_folder=str(folder), device=device,
    )  # fmt: skip
    report = check_job(
        job, exporting=False, memory=True, budget=request.budget or None, on_try=tell
    )
    count = len(report.problems)
    words = report.memory[1:2] or report.memory[:1]  # what becomes of the budget, if there is one
    message = f"{count} problem{'s' * (count > 1)} to mend" if count else "; ".join(words)
    return report.to_json(), message.rstrip(":")
