"""check: everything that can be known before any weight is loaded."""

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
    """Check a request's job; predicting the memory takes seconds to minutes."""

    def report_try(changes: str) -> None:
        check()
        live.note(f"predicting the memory: {changes}")

    folder, source = Path(request.run_folder), checkpoint_path(request.checkpoint)
    job = Job(
        checkpoint=str(source), output=str(folder / "hardened.safetensors"), plan=request.plan,
        run_folder=str(folder), device=device, prediction=request.prediction,
        text_encoder=request.text_encoder, vae=request.vae,
    )  # fmt: skip
    report = check_job(
        job, exporting=False, memory=True, budget=request.budget or None, on_try=report_try
    )
    count = len(report.problems)
    words = report.memory[1:2] or report.memory[:1]  # the second says whether the budget is met
    message = f"{count} problem{'s' * (count > 1)} to fix" if count else "; ".join(words)
    return report.to_json(), message.rstrip(":")
