"""An export as a value: the request, the new header and the report."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...adapter.dense import AnyAdapter
from ...errors import ExportError
from ...numerics.byte_sizes import format_bytes
from ...progress import ProgressCallback, Whole
from ..hashing import source_name, steps_of
from ..header import Header
from ..info import CheckpointInfo
from ..metadata import NO_HASH, Provenance, hardened_metadata, versions
from .copy_value import Copy, recorded, sentences
from .slices import Tally, Touched
from .stream import PARTIAL, Hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """Report of an export.

    touched, untouched: tensors rewritten and left as they were (of the U-Net's files, in a folder).
    bytes: written. sha256, tensor_sha256: hex, of the result ("" if not asked for) and of its bytes
    after the header;
    in a folder, those of the U-Net's (first) file, as is source_sha256.
    largest_change: greatest ‖ΔW‖ / ‖W‖ (Frobenius), found in the tensor largest_change_in.
    lost_to_rounding: tensors of which more than half of the update fell below what their type
    resolves. rounding_error: ‖what was added − ΔW‖ / ‖ΔW‖ over all of them.
    copies: further copies of the denoiser in the source, and what became of each.
    warnings: sentences for the user. family: name of the model's.
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
    copies: tuple[Copy, ...] = ()
    family: str = ""


@dataclass(frozen=True, slots=True)
class Export:
    """Request for one export.

    touched: the denoiser's tensors that the adapter changes. changes: how many tensors are
    rewritten, those of the copies included.
    """

    info: CheckpointInfo
    adapter: AnyAdapter
    touched: Touched
    target: Path
    provenance: Provenance
    overwrite: bool
    hash_file: bool
    on_progress: ProgressCallback
    expected: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[Copy, ...] = ()
    changes: int = 0

    def in_one_bar(self, headers: Iterable[Header]) -> Export:
        """Return the job with reports that count all of its passes over files with these headers as
        one."""
        total = sum(
            steps_of(one.data_bytes) + self.hash_file * steps_of(one.data_start + one.data_bytes)
            for one in headers
        )
        return replace(self, on_progress=Whole(self.on_progress, total))

    def provenance_with(self, hashes: Hashes) -> Provenance:
        return replace(
            self.provenance,
            source=self.provenance.source or self.info.path.name,
            source_sha256=hashes.source,
            touched_tensors=self.changes,
            copies=recorded(self.copies),
            versions={**versions(), **self.provenance.versions},
        )

    def check_source(self, path: Path, hashes: Hashes) -> None:
        """Raise if a file of the source is not the one that was hardened.

        hashes: those of the file; nothing is compared before they are known.
        """
        names = [source_name(self.info, path)]
        if len(self.expected) == 1:  # a single file, which may have been renamed
            names = [*self.expected]
        wanted = self.expected.get(names[0])
        if wanted and hashes.source not in (NO_HASH, wanted):
            raise ExportError(
                f"{path} is not the checkpoint that was hardened: its SHA-256 has changed since; "
                "put the original back, or harden this one"
            )

    def metadata(self, source: dict[str, str], hashes: Hashes, date: str) -> dict[str, str]:
        return hardened_metadata(
            source,
            self.provenance_with(hashes),
            family=self.info.family,
            layout=self.info.layout,
            prediction_type=self.info.prediction_type,
            resolution=self.info.resolution,
            decided=self.info.decided,
            title=self.info.path.stem if self.info.layout == "ldm" else self.info.path.name,
            date=date,
            tensor_sha256=hashes.tensors,
        )

    def report(
        self, tally: Tally, hashes: Hashes, *, untouched: int, size: int, seconds: float
    ) -> ExportReport:
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
            warnings=(
                *tally.warnings(),
                *sentences(self.copies, self.info.family.denoiser),
                *self.info.cautions,
            ),
            provenance=self.provenance_with(hashes),
            copies=self.copies,
            family=self.info.family.name,
        )


def check_target(source: Path, target: Path, *, overwrite: bool, size: int) -> None:
    """Refuse a target that must not be, or cannot be, written. size: bytes it will need."""
    if _same(source, target):
        raise ExportError(
            f"{target} is the source itself: the original is never overwritten; choose another name"
        )
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent} is not a folder: create it first")
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
    """Return the time of an export in ISO 8601, to the second, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _same(source: Path, target: Path) -> bool:
    """Return True if both are the same file or folder, also through links, case or `..`."""
    try:
        return os.path.samefile(source, target)
    except FileNotFoundError:
        return source.resolve() == target.resolve()
