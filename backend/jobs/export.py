"""Write the results of a run: hardened checkpoint, LoRA, model card, curves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..adapter.dense import AnyAdapter, DenseAdapter
from ..adapter.formats import LoraFormat, guess_family, lora_format, save_lora
from ..adapter.lora import Adapter
from ..adapter.low_rank import nearest_lora
from ..checkpoint.detect import detect_denoiser
from ..checkpoint.info import CheckpointInfo
from ..checkpoint.save import ExportReport, export_merged
from ..errors import ExportError, RunError
from ..plan.hardening import HardeningPlan
from ..progress import ProgressCallback, silent
from ..report.card import card_path, curves_path, provenance_of, write_card
from ..report.plots import plot_records
from ..run import json_lines
from ..run.folder import STEPS, RunFolder
from ..run.rebuild import STAGES
from ..run.records import ErasedLayer, StepRecord
from .measured import check_measured_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The files that were written. lora, curves: None where there are none.

    touched, untouched: tensors. tensor_sha256: of all bytes after the header; sha256: of the
    whole file, "" if not requested.
    """

    run: Path
    checkpoint: Path
    card: Path
    lora: Path | None
    curves: Path | None
    touched: int
    untouched: int
    tensor_sha256: str
    sha256: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoraOutput:
    """A LoRA that was written. error: ‖ΔW − the LoRA's‖ / ‖ΔW‖; None where it is exact.

    format: see `save_lora`.
    """

    path: Path
    rank: int
    error: float | None
    format: LoraFormat = "kohya"

    @property
    def sentence(self) -> str:
        """The path, and how much of the change the LoRA holds."""
        if self.error is None:
            return str(self.path)
        return (
            f"{self.path}, rank {self.rank}: relative error {self.error:.1%} of a change of all "
            "weights; measure it before you use it in the checkpoint's place"
        )


def export_job(
    folder: Path | str,
    output: Path,
    *,
    checkpoint: Path | str = "",
    probe: Path | str = "",
    prediction: str = "",
    overwrite: bool = False,
    unfinished: bool = False,
    hash_file: bool = False,
    on_progress: ProgressCallback = silent,
) -> Outputs:
    """Write the hardened checkpoint of a run, with its card and curves.

    Args:
        folder: of the run.
        output: the hardened checkpoint.
        checkpoint: the source, where it has moved.
        probe: folder of a finished probe, whose results the header and the card will state.
        prediction: decides what the source predicts, as in a job; empty: as the run's job says.
        unfinished: export the run as it is, although steps are left.
        hash_file: compute the SHA-256 of the new file, which reads it once more.
    """
    run = open_run(folder, unfinished=unfinished)
    found: Path | CheckpointInfo = source_of_run(run, checkpoint)
    decided = prediction or (run.job.prediction if run.job else "")
    parts = run.job.parts if run.job else {}
    if decided or any(parts.values()):
        found = detect_denoiser(found, prediction=decided, parts=parts)
    record = finished_probe(probe, run.load_adapter()[0], found) if probe else None
    return write_outputs(
        run, checkpoint=found, output=output, overwrite=overwrite, probe=record,
        hash_file=hash_file,
        on_progress=on_progress,
    )  # fmt: skip


def lora_job(
    folder: Path | str,
    output: Path,
    *,
    naming: Literal["", "kohya", "diffusers"] = "",
    rank: int = 0,
    overwrite: bool = False,
    unfinished: bool = False,
) -> LoraOutput:
    """Write the adapter of a run as a LoRA. naming: as in `save_lora`.

    rank: of the nearest LoRA where the run changed all weights, which no LoRA holds exactly; 0
    where the adapter is a LoRA already.
    """
    adapter, _ = open_run(folder, unfinished=unfinished).load_adapter()
    error = None
    if isinstance(adapter, DenseAdapter):
        if not rank:
            raise ExportError(
                f"{folder} changed all weights, and a LoRA holds only an approximation of that: "
                "name the rank of one in `rank`, or export the checkpoint"
            )
        adapter, error = nearest_lora(adapter, rank)
    elif rank and rank != adapter.rank:
        raise ExportError(
            f"{folder} has a LoRA of rank {adapter.rank}: leave `rank` out; it is for runs that "
            "changed all weights"
        )
    about = {} if error is None else {"resalign.relative_error": f"{error:.4g}"}
    family = guess_family(adapter)
    naming = lora_format(family, naming)
    path = save_lora(
        adapter, output, format=naming, family=family, metadata=about, overwrite=overwrite
    )
    return LoraOutput(path, adapter.rank, error, naming)


def export_adapter(
    source: Path | CheckpointInfo,
    adapter: AnyAdapter,
    output: Path,
    *,
    plan: HardeningPlan,
    records: Sequence[StepRecord],
    probe: Mapping[str, Any] | None = None,
    erased: Sequence[ErasedLayer] = (),
    overwrite: bool = False,
    hash_file: bool = False,
    expected: Mapping[str, str] | None = None,
    on_progress: ProgressCallback = silent,
) -> tuple[ExportReport, Path]:
    """Write a checkpoint with an adapter merged in, and its model card; return both.

    probe: a probe's record, as `finished_probe` returns it. erased: as `erased_layers` returns it.
    expected: SHA-256 of the source's files, where they are known.
    """
    refuse_existing((card_path(output),), overwrite)
    provenance = provenance_of(plan, tuple(records), probe=probe, erased=erased)
    report = export_merged(
        source, adapter, output, provenance=provenance, overwrite=overwrite,
        hash_file=hash_file, expected=expected, on_progress=on_progress,
    )  # fmt: skip
    with _explained(card_path(output)):
        return report, write_card(report)


def write_outputs(
    run: RunFolder,
    *,
    checkpoint: Path | CheckpointInfo,
    output: Path,
    lora: Path | None = None,
    overwrite: bool = False,
    hash_file: bool = False,
    probe: Mapping[str, Any] | None = None,
    on_progress: ProgressCallback = silent,
) -> Outputs:
    """Write checkpoint, card and curves of a run's adapter as it was last saved.

    checkpoint: the source, recognised or not. lora: where to write a LoRA too; None writes none.
    """
    adapter, _ = run.load_adapter()
    replaced = set(run.writing())
    overwrite_lora = overwrite or (lora is not None and lora.absolute() in replaced)
    overwrite = overwrite or output.absolute() in replaced
    refuse_existing((card_path(output), curves_path(output)), overwrite)
    records = tuple(StepRecord.from_json(record) for record in run.records())
    report, card = export_adapter(
        checkpoint, adapter, output, plan=run.plan, records=records, probe=probe,
        erased=erased_layers(run.path), overwrite=overwrite, hash_file=hash_file,
        expected=run.source(), on_progress=on_progress,
    )  # fmt: skip
    if isinstance(adapter, DenseAdapter):
        lora = None  # only on request, as it is an approximation: `lora_job`
    if lora is not None and isinstance(adapter, Adapter):
        with _explained(lora):
            lora = save_lora(adapter, lora, overwrite=overwrite_lora)
    curves = None
    if records:
        curves = curves_path(output)
        with _explained(curves):
            curves = plot_records(records, curves, warm_up=run.plan.warm_up_steps)
    return Outputs(
        run=run.path, checkpoint=output, card=card, lora=lora, curves=curves,
        touched=report.touched, untouched=report.untouched,
        tensor_sha256=report.tensor_sha256, sha256=report.sha256, warnings=tuple(report.warnings),
    )  # fmt: skip


def finish_outputs(
    run: RunFolder, *, output: Path, lora: Path, overwrite: bool, **options: Any
) -> Outputs:
    """Write a run's outputs as `write_outputs` does; if interrupted, the next call replaces them.

    The run notes its files before it writes them, so that only what it wrote itself is replaced.
    """
    free = [path for path in (output, lora) if overwrite or not path.exists()]
    run.begin_outputs([*free, *run.writing()])
    found = write_outputs(run, output=output, lora=lora, overwrite=overwrite, **options)
    run.end_outputs()
    return found


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise an ExportError for a file beside an export that may be somebody's own."""
    for path in paths:
        if os.path.lexists(path) and not overwrite:
            raise ExportError(
                f"{path} exists, and the export writes one of that name: move it away, choose "
                "another name, or allow overwriting"
            )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an OSError into an ExportError that names the file."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error


def erased_layers(run: Path) -> tuple[ErasedLayer, ...]:
    """Return what the run in a folder erased, in a stage or by its own method."""
    found: list[ErasedLayer] = []
    for folder in (*sorted((run / STAGES).glob("*")), run):
        for record in json_lines.read(folder / STEPS):
            found += StepRecord.from_json(record).erased
    return tuple(found)


def open_run(folder: Path | str, *, unfinished: bool = False) -> RunFolder:
    """Open a run for reading; raise where steps are left, unless `unfinished` accepts that."""
    run = RunFolder.open(folder, read_only=True)
    done, total = run.steps_saved, run.plan.outer_steps
    if done < total and not unfinished:
        raise RunError(
            f"{run.path} stopped after step {done} of {total}: `resalign resume {run.path}` "
            "continues it, `unfinished` takes it as it is"
        )
    return run


def source_of_run(run: RunFolder, checkpoint: Path | str = "") -> Path:
    """Return the checkpoint that a run hardened, or `checkpoint`, where it is now."""
    if not checkpoint and run.job is None:
        raise RunError(f"{run.path} does not say which checkpoint it hardened: give `checkpoint`")
    found = Path(checkpoint or (run.job.checkpoint if run.job else ""))
    if not found.exists():
        raise RunError(
            f"{found}, the checkpoint that {run.path} hardened, is missing (moved, renamed or "
            "deleted?): put it back, or name its new place in `checkpoint`; an export rewrites it"
        )
    return found


def finished_probe(
    folder: Path | str, adapter: AnyAdapter, source: Path | CheckpointInfo
) -> dict[str, Any]:
    """Return the record of a finished probe for the header; its last model is the hardened one.

    source: the checkpoint that the adapter hardens. Raises an ExportError unless that model carries
    the adapter: as a run, or as a file that is the source with exactly this change.
    """
    from ..probe.recorded import adapter_of, check_adapter, probe_record
    from ..probe.results_io import read_probe  # imported here, as it takes seconds

    result = read_probe(folder)
    if not result.complete or len(result.models) < 2:
        raise RunError(
            f"{folder} is not a finished probe of an original and a hardened checkpoint: "
            f"`resalign resume {folder}` continues it"
        )
    model = (result.compared or result.models)[-1]
    if adapter_of(model):
        check_adapter(result, adapter)
    else:
        check_measured_file(Path(folder), model, adapter, source)
    return probe_record(result, model.name)
