"""harden: begin or continue a run and report it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..jobs.check import CheckReport
from ..jobs.harden import Start, harden_job
from ..jobs.live_state import LiveState, past_steps
from ..jobs.previews import PreviewSettings
from ..jobs.verdict import of_run
from ..plan.job import Job
from ..progress import with_check
from ..run.folder import RunFolder
from .protocol import Stopped
from .requests import HardenRequest, ResumeRequest, checkpoint_path

Check = Callable[[], None]
Done = tuple[dict[str, Any], str]


def harden(request: HardenRequest, live: LiveState, check: Check, *, device: str) -> Done:
    folder, source = Path(request.run_folder), checkpoint_path(request.checkpoint)
    # Where the command line's `resume` and a host's export look for the result.
    output = folder / ("hardened" if source.is_dir() else "hardened.safetensors")
    job = Job(
        checkpoint=str(source), output=str(output), plan=request.plan, run_folder=str(folder),
        device=device, prediction=request.prediction, text_encoder=request.text_encoder,
        vae=request.vae,
    )  # fmt: skip
    return harden_in(folder, job, "any", request, live, check)


def harden_in(
    folder: Path,
    job: Job,
    start: Start,
    request: HardenRequest | ResumeRequest,
    live: LiveState,
    check: Check,
) -> Done:
    """Take the steps that are left of a job in its folder, with previews."""
    begun: list[RunFolder] = []

    def show_start(run: RunFolder, report: CheckReport | None) -> None:
        begun.append(run)
        done, total = run.steps_saved, run.plan.outer_steps
        live.state.update(step=done, total=total)
        if done < total:
            records = run.records()[:done]
            live.plan(run.plan, records, every=request.preview_every)
            live.recall(past_steps(records, total))
            live.keep_first_pictures(folder, resumed=done > 0)
            live.note(f"loading {Path(job.checkpoint).name}")
            check()

    previews = PreviewSettings(
        show=live.picture, every=request.preview_every, prompt=request.preview_prompt, check=check,
        on_progress=live,
    )  # fmt: skip
    try:
        found = harden_job(
            job, folder=folder, start=start, previews=previews, on_ready=show_start,
            adopt=getattr(request, "adopt", False), on_progress=with_check(live, check),
            on_note=live.remark,
        )  # fmt: skip
    except Stopped:
        if not begun:
            raise
        run = begun[0]
        raise Stopped(
            f"stopped after step {run.steps_saved} of {run.plan.outer_steps}; all that is done is "
            "kept, pictures too, and Resume continues from there"
        ) from None
    total = found.plan.outer_steps
    result = {
        "run_folder": str(found.folder),
        "steps": total,
        "concepts": [concept.name for concept in found.plan.concepts],
        "last": {name: round(v, 6) for name, v in found.records[-1].values().items()},
        "warnings": list(found.warnings),
    }
    harms = [record.harm for record in found.records]
    said, live.verdict = of_run(found.plan, "measure it on the page Probe", harms)
    return result, said
