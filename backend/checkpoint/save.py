"""Export a hardened checkpoint by rewriting its source: only what the adapter touches changes.

Loading a model and saving it again loses precision, drops tensors and doubles files. So the source
file is copied tensor by tensor: W + ΔW where the adapter has a module, in W's own type; the same
bytes everywhere else. The result appears under its name in one move, or not at all.
"""

from __future__ import annotations

import datetime
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapter.lora import Adapter
from ..errors import ExportError
from ..model.model import Model
from ..numerics.byte_sizes import format_bytes
from ..numerics.determinism import threads
from ..progress import ProgressCallback, silent
from .detect import CheckpointInfo, detect
from .metadata import Provenance, hardened_metadata, versions
from .stream import PARTIAL, Hashes, rewrite
from .touch import Tally, check_touched, touched_names

_SPARE = 1 << 20  # the header grows by some kilobytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export did.

    touched, untouched: tensors rewritten and left as they were (of the U-Net's files, in a folder).
    bytes: written. sha256, tensor_sha256: hex, of the result ("" if not asked for) and of its bytes
    after the header;
    in a folder, those of the U-Net's (first) file, as is source_sha256.
    largest_change: greatest ‖ΔW‖ / ‖W‖ (Frobenius), found in the tensor largest_change_in.
    lost_to_rounding: tensors of which more than half of the update fell below what their type
    resolves. rounding_error: ‖what was added − ΔW‖ / ‖ΔW‖ over all of them.
    warnings: sentences for the user.
    """

    source: Path
    target: Path
    touched: int
    untouched: int
    bytes: int
    seconds: float
    source_sha256: str
    sha256: str
    tensor_sha256: str
    largest_change: float
    largest_change_in: str
    lost_to_rounding: int
    rounding_error: float
    warnings: tuple[str, ...]
    provenance: Provenance


def export_merged(
    model_or_path: Model | str | Path,
    adapter: Adapter,
    target: str | Path,
    *,
    provenance: Provenance | None = None,
    overwrite: bool = False,
    hash_file: bool = False,
    on_progress: ProgressCallback = silent,
) -> ExportReport:
    """Write the source with the adapter merged in, as a file or, from a folder, a folder.

    model_or_path: the checkpoint's file or diffusers folder, or the model loaded from it (only its
    `source` is used). hash_file: also report the SHA-256 of the whole new file, which
    takes one more reading of it: the header holds the hashes of all that follows. Progress counts
    MiB, first of stage `export`, then of `hash`.
    """
    source, target = source_of(model_or_path), Path(target)
    info = detect(source)
    names = touched_names(info, adapter)
    if not names:
        raise ExportError("the adapter has no modules: there is nothing to export")
    job = Export(
        info, adapter, names, target, provenance or Provenance(), overwrite, hash_file, on_progress
    )
    # Merging is small work between hashes that have threads of their own: more threads per
    # operation only wait for one another, at full load of the cores that hash.
    with threads(1):
        if info.layout == "diffusers":
            from .save_folder import export_folder

            return export_folder(job)
        return _export_file(job)


@dataclass(frozen=True, slots=True)
class Export:
    """One export that has been asked for. names: tensor to module."""

    info: CheckpointInfo
    adapter: Adapter
    names: dict[str, str]
    target: Path
    provenance: Provenance
    overwrite: bool
    hash_file: bool
    on_progress: ProgressCallback

    def provenance_with(self, hashes: Hashes) -> Provenance:
        return replace(
            self.provenance,
            source=self.provenance.source or self.info.path.name,
            source_sha256=hashes.source,
            touched_tensors=len(self.names),
            versions={**versions(), **self.provenance.versions},
        )

    def metadata(self, source: dict[str, str], hashes: Hashes, date: str) -> dict[str, str]:
        return hardened_metadata(
            source,
            self.provenance_with(hashes),
            family=self.info.family,
            layout=self.info.layout,
            prediction_type=self.info.prediction_type,
            resolution=self.info.resolution,
            title=self.info.path.stem if self.info.layout == "ldm" else self.info.path.name,
            date=date,
            tensor_sha256=hashes.tensors,
        )

    def report(
        self, tally: Tally, hashes: Hashes, *, untouched: int, size: int, seconds: float,
        warnings: tuple[str, ...] = (),
    ) -> ExportReport:  # fmt: skip
        return ExportReport(
            source=self.info.path,
            target=self.target,
            touched=tally.touched,
            untouched=untouched,
            bytes=size,
            seconds=seconds,
            source_sha256=hashes.source,
            sha256=hashes.result,
            tensor_sha256=hashes.tensors,
            largest_change=tally.largest_change,
            largest_change_in=tally.largest_change_in,
            lost_to_rounding=tally.lost,
            rounding_error=tally.rounding_error,
            warnings=(*tally.warnings(), *warnings),
            provenance=self.provenance_with(hashes),
        )


def source_of(model_or_path: Model | str | Path) -> Path:
    """The file or folder that a model came from."""
    if not isinstance(model_or_path, Model):
        return Path(model_or_path)
    if model_or_path.source is None:
        raise ExportError(
            "this model was handed over by a host, not loaded from a file, so there is no source "
            "to rewrite: export with the path of its checkpoint instead"
        )
    return model_or_path.source


def check_target(source: Path, target: Path, *, overwrite: bool, size: int) -> None:
    """Refuse a target that must not be, or cannot be, written. size: bytes it will need."""
    if _same(source, target):
        raise ExportError(
            f"{target} is the source itself: the original is never overwritten; choose another name"
        )
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent} is no folder: create it first")
    if os.path.lexists(target) and not overwrite:
        raise ExportError(f"{target} exists: choose another name, or allow overwriting")
    free = shutil.disk_usage(target.parent).free
    leftover = target.with_name(target.name + PARTIAL)
    if leftover.is_file() and not leftover.is_symlink():
        free += leftover.stat().st_size
    if free < size:
        raise ExportError(
            f"{target.parent} has {format_bytes(free)} free, but the export needs "
            f"{format_bytes(size)}: make room, or choose another disk"
        )


def now() -> str:
    """The moment of an export in ISO 8601, to the second, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _export_file(job: Export) -> ExportReport:
    started = time.monotonic()
    source, target = job.info.path, job.target
    header = job.info.headers[source]
    if target.suffix != ".safetensors":
        raise ExportError(f"{target.name}: a file is written as .safetensors; change the ending")
    if target.is_dir():
        raise ExportError(f"{target} is a folder, but {source.name} is a single file")
    check_touched(source.name, [header], job.names, job.adapter)
    check_target(source, target, overwrite=job.overwrite, size=job.info.bytes + _SPARE)
    tally, date = Tally(), now()
    hashes = rewrite(
        source,
        target,
        header,
        {name: tally.change(name, module, job.adapter) for name, module in job.names.items()},
        lambda hashes: job.metadata(header.metadata, hashes, date),
        hash_file=job.hash_file,
        on_progress=job.on_progress,
    )
    return job.report(
        tally,
        hashes,
        untouched=len(header.tensors) - tally.touched,
        size=target.stat().st_size,
        seconds=time.monotonic() - started,
    )


def _same(source: Path, target: Path) -> bool:
    """The same file or folder, also through links, case or `..`."""
    try:
        return os.path.samefile(source, target)
    except FileNotFoundError:
        return source.resolve() == target.resolve()
