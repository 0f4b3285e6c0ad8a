"""The files that a run ends in: hardened checkpoint, LoRA, model card, curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapter.formats import save_lora
from ..checkpoint.save import export_merged
from ..errors import RunError
from ..progress import ProgressCallback, silent
from ..report.card import provenance_of, write_card
from ..report.plots import plot_records
from ..run.folder import RunFolder
from ..run.records import StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What was written. lora, curves: None where there are none. Counts are of tensors.

    tensor_sha256: of all bytes after the header; sha256: of the whole file, "" if not asked for.
    """

    checkpoint: Path
    card: Path
    lora: Path | None
    curves: Path | None
    touched: int
    untouched: int
    tensor_sha256: str
    sha256: str
    warnings: tuple[str, ...]


def write_outputs(
    run: RunFolder,
    *,
    checkpoint: Path,
    output: Path,
    lora: Path | None = None,
    overwrite: bool = False,
    hash_file: bool = False,
    probe: Mapping[str, Any] | None = None,
    on_progress: ProgressCallback = silent,
) -> Outputs:
    """Write everything from a run's adapter as it is by now.

    checkpoint: the source. lora: None writes none. probe: its record (`finished_probe`), for the
    header and the card.
    """
    adapter, _ = run.load_adapter()
    records = tuple(StepRecord.from_json(record) for record in run.records())
    provenance = provenance_of(run.plan, records, probe=probe)
    report = export_merged(
        checkpoint, adapter, output, provenance=provenance, overwrite=overwrite,
        hash_file=hash_file, on_progress=on_progress,
    )  # fmt: skip
    if lora is not None:
        lora = save_lora(adapter, lora, overwrite=overwrite)
    card, curves = write_card(report), None
    if records:
        curves = output.with_name(output.name.removesuffix(".safetensors") + "-curves.png")
        curves = plot_records(records, curves, warm_up=run.plan.warm_up_steps)
    return Outputs(
        checkpoint=output, card=card, lora=lora, curves=curves, touched=report.touched,
        untouched=report.untouched, tensor_sha256=report.tensor_sha256,
        sha256=report.sha256, warnings=tuple(report.warnings),
    )  # fmt: skip


def finished_run(folder: Path | str, *, unfinished: bool = False) -> RunFolder:
    """The run, to be read, if all its steps are done or it is wanted as it is."""
    run = RunFolder.open(folder, read_only=True)
    done, total = run.steps_saved, run.plan.outer_steps
    if done < total and not unfinished:
        raise RunError(
            f"{run.path} stopped after step {done} of {total}: `resalign resume {run.path}` goes "
            "on, --unfinished takes it as it is"
        )
    return run


def source_of_run(run: RunFolder, checkpoint: Path | str = "") -> Path:
    """The checkpoint that a run hardened, or where it is now; a RunError where it is not there."""
    if not checkpoint and run.job is None:
        raise RunError(f"{run.path} does not say which checkpoint it hardened: give --checkpoint")
    found = Path(checkpoint or (run.job.checkpoint if run.job else ""))
    if not found.exists():
        raise RunError(
            f"{found}, the checkpoint that {run.path} hardened, is not there (moved, renamed or "
            "deleted?): put it back, or give --checkpoint where it is now; an export rewrites it"
        )
    return found


def finished_probe(folder: Path | str) -> dict[str, Any]:
    """What the header will say of a finished probe; of several models, the last is ours."""
    from ..probe.recorded import probe_record  # need not wait for
    from ..probe.results_io import read_probe  # these take seconds to import, which most exports

    result = read_probe(folder)
    if not result.complete or len(result.models) < 2:
        raise RunError(
            f"{folder} is no finished probe of an original and a hardened checkpoint: "
            f"`resalign resume {folder}` goes on with it"
        )
    return probe_record(result, result.models[-1].name)
