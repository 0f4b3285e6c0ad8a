"""The files that a run ends in: hardened checkpoint, LoRA, model card, curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapter.formats import save_lora
from ..card import provenance_of, write_card
from ..checkpoint.save import export_merged
from ..plots import plot_records
from ..records import StepRecord
from ..run_folder import RunFolder
from .console import Console


def write_outputs(
    run: RunFolder,
    *,
    checkpoint: Path,
    output: Path,
    lora: Path | None,
    console: Console,
    overwrite: bool,
    probe: Mapping[str, Any] | None = None,
) -> None:
    """Write everything and print what was written. lora: None writes none. probe: its record."""
    adapter, _ = run.load_adapter()
    records = tuple(StepRecord.from_json(record) for record in run.records())
    plan = run.plan
    provenance = provenance_of(plan, records, probe=probe)
    report = export_merged(
        checkpoint, adapter, output, provenance=provenance, overwrite=overwrite,
        on_progress=console.progress,
    )  # fmt: skip
    console.close()
    for warning in report.warnings:
        console.warning(warning)
    written = {"output": output}
    if lora is not None:
        written["lora"] = save_lora(adapter, lora, overwrite=overwrite)
    written["card"] = write_card(report)
    if records:
        curves = output.with_name(_stem(output) + "-curves.png")
        written["curves"] = plot_records(records, curves, warm_up=plan.warm_up_steps)
    written["run_folder"] = run.path
    names = {
        "output": "checkpoint",
        "lora": "LoRA",
        "card": "model card",
        "curves": "curves",
        "run_folder": "run folder",
    }
    lines = [f"{names[key]:12}{path}" for key, path in written.items()]
    lines.append(f"{report.touched} tensors changed, {report.untouched} left as they were")
    console.result(
        "\n".join(lines), "done", **{key: str(path) for key, path in written.items()},
        touched=report.touched, untouched=report.untouched, sha256=report.sha256,
    )  # fmt: skip


def _stem(output: Path) -> str:
    return output.name.removesuffix(".safetensors")
