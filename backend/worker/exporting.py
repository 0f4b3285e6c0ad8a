"""export, lora: write the results of a run.

They need neither PEFT nor diffusers, which take seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..demo.plans import CHECKPOINT
from ..jobs.export import export_job, lora_job, open_run
from ..jobs.live_state import LiveState
from ..jobs.verdict import harms_of, of_export
from ..probe.verdict import of_probe
from ..progress import with_check
from .requests import ExportRequest, LoraRequest, checkpoint_path

Check = Callable[[], None]
Done = tuple[dict[str, Any], str]


def export(request: ExportRequest, live: LiveState, check: Check) -> Done:
    found = export_job(
        request.run_folder, Path(request.output),
        checkpoint=checkpoint_path(request.checkpoint) if request.checkpoint else "",
        probe=request.probe, prediction=request.prediction, overwrite=request.overwrite,
        unfinished=request.unfinished, on_progress=with_check(live, check),
    )  # fmt: skip
    result = {
        "path": str(found.checkpoint),
        "changed": found.touched,
        "kept": found.untouched,
        "tensor_sha256": found.tensor_sha256,
        "card": str(found.card),
        "curves": str(found.curves or ""),
        "run_folder": str(found.run),
        "warnings": list(found.warnings),
    }
    run = open_run(request.run_folder, unfinished=True)
    harms = harms_of(run.records())
    source = request.checkpoint or (run.job.checkpoint if run.job else "")
    result["demo"] = Path(checkpoint_path(source)).resolve() == CHECKPOINT.resolve()
    report = None
    if request.probe:
        from ..probe.results_io import read_probe  # imported here, as it takes seconds

        report = of_probe(read_probe(request.probe))
    doubt, live.verdict = of_export(run.plan, harms, report=report)
    said = f"{found.touched} tensors changed, {found.untouched} left as they were"
    return result, "\n".join(filter(None, [doubt, said]))


def lora(request: LoraRequest, live: LiveState, check: Check) -> Done:
    found = lora_job(
        request.run_folder, Path(request.output), naming=request.format, rank=request.rank,
        overwrite=request.overwrite, unfinished=request.unfinished,
    )  # fmt: skip
    result: dict[str, Any] = {"path": str(found.path), "format": found.format}
    if found.error is None:
        return result, f"{found.path.name} written"
    result |= {"rank": found.rank, "relative_error": found.error}
    return result, f"{found.path.name} written: relative error {found.error:.1%}"
