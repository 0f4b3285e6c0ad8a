"""Export of a diffusers folder: a copy in which only the denoiser's files are rewritten.

Everything else is copied byte for byte: saving it anew would write text encoders that older
transformers read as *random* weights (names without `text_model.`, no vocab.json). Each variant of
the denoiser (fp16, non_ema, shards) is hardened, since a loader may pick any of them. What would
still give out the unhardened one (pickles, other formats, whole checkpoints beside) stays behind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ...errors import ExportError
from ..header import Header, read_header
from .job import Export, ExportReport, check_target, now
from .slices import Tally, check_touched
from .stream import PARTIAL, Hashes, mode_of_copy, rewrite, sync_folder

SIDECAR = "resalign.json"
_WEIGHTS = {
    ".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".onnx_data", ".pb",
    ".gguf", ".h5",
}  # fmt: skip
_NOT_COPIED = {".git", ".cache", "__pycache__"}
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def export_folder(job: Export) -> ExportReport:
    """Write `job.target`, a folder; it appears under its name in one move, or not at all."""
    started = time.monotonic()
    source, target, own = job.info.path, job.target, job.info.family.denoiser
    denoiser = {path: read_header(path) for path in sorted((source / own).glob("*.safetensors"))}
    _check_variants(job, denoiser)
    if target.is_file():
        raise ExportError(f"{target} is a file, but {source.name} is a diffusers folder")
    inside = (target.resolve(), source.resolve())
    if any(one in other.parents for one, other in (inside, inside[::-1])):
        raise ExportError(f"{target} and the source lie within each other: choose another place")
    copied, left = _sort(source, own)
    size = sum(path.stat().st_size for path in [*copied, *denoiser])
    check_target(source, target, overwrite=job.overwrite, size=size + (1 << 20))

    tally, date, hashes = Tally(), now(), {}
    partial = target.with_name(target.name + PARTIAL)
    _remove(partial)
    try:
        partial.mkdir()
        _copy(source, partial, copied)
        (partial / own).mkdir(exist_ok=True)
        for path, header in denoiser.items():
            hashes[path] = _rewrite(job, path, header, partial, tally, date)
        first = hashes[job.info.files[own][0]]
        _write_sidecar(partial / SIDECAR, job, first, {p: hashes[p] for p in denoiser})
        sync_folder(partial)
        _move(partial, target)
    except BaseException:
        _remove(partial)
        raise
    sync_folder(target.parent)
    names = ", ".join(str(path.relative_to(source)) for path in left)
    note = f"left out, since they hold the unhardened U-Net: {names}"
    return job.report(
        tally,
        first,
        untouched=sum(len(header.tensors) for header in denoiser.values()) - tally.touched,
        size=sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
        seconds=time.monotonic() - started,
        warnings=(note,) if left else (),
    )


def _check_variants(job: Export, denoiser: dict[Path, Header]) -> None:
    """Raise unless every variant, over all its shards, has every touched tensor."""
    variants: dict[str, list[Header]] = {}
    for path, header in denoiser.items():
        variants.setdefault(_SHARD.sub("", path.name), []).append(header)
    for name, headers in variants.items():
        check_touched(f"{job.info.family.denoiser}/{name}", headers, job.touched, job.adapter)


def _sort(source: Path, denoiser: str) -> tuple[list[Path], list[Path]]:
    """Return the files to copy, and the weight files to leave out."""
    copied, left = [], []
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        if _NOT_COPIED & set(parts) or not path.is_file() or parts == (SIDECAR,):
            continue
        if path.suffix in _WEIGHTS and (len(parts) == 1 or parts[0] == denoiser):
            if parts[0] != denoiser or len(parts) != 2 or path.suffix != ".safetensors":
                left.append(path)
        else:
            copied.append(path)
    return copied, left


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

    return rewrite(
        path,
        partial / job.info.family.denoiser / path.name,
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
            f"{job.info.family.denoiser}/{p.name}": {
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
