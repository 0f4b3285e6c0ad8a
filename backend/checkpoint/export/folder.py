"""Export of a diffusers folder: a copy in which only the denoiser's files are rewritten.

Everything else is copied byte for byte: saving it anew would write text encoders that older
transformers read as *random* weights (names without `text_model.`, no vocab.json). Each variant of
the denoiser (fp16, non_ema, shards) is hardened, since a loader may pick any of them. What would
still give out the unhardened one stays behind: `copies` says how it is found.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ...errors import ExportError
from ..header import Header
from .folder_files import SIDECAR, FolderFiles, sort_folder
from .job import Export, ExportReport, check_target, now
from .slices import Tally, check_touched
from .stream import PARTIAL, Hashes, lock, mode_of_copy, rewrite, sync_folder

__all__ = ["SIDECAR", "export_folder"]


def export_folder(job: Export) -> ExportReport:
    """Write `job.target`, a folder; it appears under its name in one move, or not at all."""
    started = time.monotonic()
    source, target = job.info.path, job.target
    files = sort_folder(job.info)
    denoiser = files.rewritten
    _check_groups(job, files)
    changes = sum(name in header.tensors for header in denoiser.values() for name in job.touched)
    job = replace(job, copies=files.copies, changes=changes)
    if target.is_file():
        raise ExportError(f"{target} is a file, but {source.name} is a diffusers folder")
    inside = (target.resolve(), source.resolve())
    if any(one in other.parents for one, other in (inside, inside[::-1])):
        raise ExportError(f"{target} and the source lie within each other: choose another place")
    size = sum(path.stat().st_size for path in [*files.copied, *denoiser])
    check_target(source, target, overwrite=job.overwrite, size=size + (1 << 20))

    job = job.in_one_bar(denoiser.values())
    tally, date, hashes = Tally(), now(), {}
    with _partial_folder(target) as partial:
        _copy(source, partial, files.copied)
        for path, header in sorted(denoiser.items()):
            hashes[path] = _rewrite(job, path, header, partial, tally, date)
        first = hashes[files.main[0]]
        _write_sidecar(partial / SIDECAR, job, first, {p: hashes[p] for p in sorted(denoiser)})
        sync_folder(partial)
        _move(partial, target)
    sync_folder(target.parent)
    return job.report(
        tally,
        first,
        untouched=sum(len(header.tensors) for header in denoiser.values()) - tally.touched,
        size=sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
        seconds=time.monotonic() - started,
    )


@contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside the target, which is removed if the export fails.

    Leftovers of a killed export are removed; a lock protects those of a running one.
    """
    partial = target.with_name(target.name + PARTIAL)
    if os.name == "nt":  # where a folder cannot be opened, nor removed while its files are open
        handle = None
        _remove(partial)
        partial.mkdir()
    else:
        handle = _locked_folder(partial)
    try:
        yield partial
    except BaseException as error:
        _remove(partial)
        if isinstance(error, OSError):
            raise ExportError(f"{target} cannot be written: {error.strerror or error}") from error
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _locked_folder(partial: Path) -> int:
    """Make the folder, lock it and empty it; return the handle that holds the lock."""
    while True:
        if partial.is_symlink() or partial.is_file():
            partial.unlink()
        partial.mkdir(exist_ok=True)
        handle = os.open(partial, os.O_RDONLY)
        if lock(handle, partial):
            break
        os.close(handle)
    for entry in list(partial.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return handle


def _check_groups(job: Export, files: FolderFiles) -> None:
    """Raise unless every variant, over all its shards, has every touched tensor."""
    for group in files.groups:
        name = group[0].relative_to(job.info.path).as_posix()
        check_touched(name, [files.rewritten[p] for p in group], job.touched, job.adapter)


def _rewrite(
    job: Export, path: Path, header: Header, partial: Path, tally: Tally, date: str
) -> Hashes:
    changes = {
        name: tally.change(name, pieces, job.adapter)
        for name, pieces in job.touched.items()
        if name in header.tensors
    }

    def metadata(hashes: Hashes) -> dict[str, str]:
        job.check_source(path, hashes)
        return job.metadata(header.metadata, hashes, date)

    place = partial / path.relative_to(job.info.path)
    place.parent.mkdir(parents=True, exist_ok=True)
    return rewrite(
        path,
        place,
        header,
        changes,
        metadata,
        hash_file=job.hash_file,
        on_progress=job.on_progress,
    )


def _copy(source: Path, partial: Path, files: Iterable[Path]) -> None:
    for path in files:
        place = partial / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, place)  # links are followed: a hub cache holds nothing else
            place.chmod(mode_of_copy(path.stat().st_mode))
            with place.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise ExportError(f"{place} cannot be written: {error.strerror or error}") from error


def _write_sidecar(path: Path, job: Export, first: Hashes, files: dict[Path, Hashes]) -> None:
    record = {
        "provenance": job.provenance_with(first).to_json(),
        "files": {
            p.relative_to(job.info.path).as_posix(): {
                "tensor_sha256": h.tensors,
                "source_sha256": h.source,
                **({"sha256": h.result} if h.result else {}),
            }
            for p, h in files.items()
        },
    }
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move(partial: Path, target: Path) -> None:
    """Replace the target. A folder needs two moves: the old one is renamed, then deleted."""
    old = target.with_name(target.name + ".resalign-old")
    _remove(old)
    if os.path.lexists(target):
        os.replace(target, old)
    try:
        os.replace(partial, target)
    except OSError as error:
        if os.path.lexists(old):
            os.replace(old, target)
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from error
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    with suppress(FileNotFoundError):
        shutil.rmtree(path)
