"""The worker's jobs that write a run's results: export, lora. They need neither PEFT nor diffusers,
which take seconds to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..adapter.formats import save_lora
from ..jobs.export import finished_probe, finished_run, source_of_run, write_outputs
from ..jobs.live_state import LiveState
from .protocol import watching
from .requests import ExportRequest, LoraRequest, checkpoint_path

Check = Callable[[], None]
Done = tuple[dict[str, Any], str]


def export(request: ExportRequest, live: LiveState, check: Check) -> Done:
    run = finished_run(request.run_folder, unfinished=request.unfinished)
    given = checkpoint_path(request.checkpoint) if request.checkpoint else ""
    probe = finished_probe(request.probe) if request.probe else None
    found = write_outputs(
        run, checkpoint=source_of_run(run, given), output=Path(request.output), probe=probe,
        overwrite=request.overwrite, on_progress=watching(live, check),
    )  # fmt: skip
    result = {
        "path": str(found.checkpoint),
        "changed": found.touched,
        "kept": found.untouched,
        "tensor_sha256": found.tensor_sha256,
        "card": str(found.card),
        "curves": str(found.curves or ""),
        "run_folder": str(run.path),
        "warnings": list(found.warnings),
    }
    return result, f"{found.touched} tensors changed, {found.untouched} left as they were"


def lora(request: LoraRequest, live: LiveState, check: Check) -> Done:
    run = finished_run(request.run_folder, unfinished=request.unfinished)
    adapter, _ = run.load_adapter()
    path = save_lora(
        adapter, Path(request.output), format=request.format, overwrite=request.overwrite
    )
    return {"path": str(path), "format": request.format}, f"{path.name} written"
