"""Proof that an export changed what it should and nothing else: both files read byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..adapter.dense import AnyAdapter
from ..errors import ExportError
from ..families.base.sources import Piece
from .detect import detect
from .export.copies import moving_averages
from .export.folder_files import SIDECAR, sort_folder
from .export.slices import Tally, Touched, touched_tensors
from .hashing import CHUNK
from .header import Header, read_header
from .info import CheckpointInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Result. changed, identical: tensors by name; in a folder the U-Net's (those of all its
    copies that are hardened), as `file:tensor`.

    files: other files of a folder, found identical.
    """

    changed: tuple[str, ...]
    identical: tuple[str, ...]
    files: tuple[str, ...] = ()


def verify_export(
    source: str | Path | CheckpointInfo, target: str | Path, adapter: AnyAdapter | None = None
) -> Verification:
    """Compare an export with its source.

    Raises an ExportError if the two differ in names, types, shapes or order of tensors, or if a
    folder still has a file that holds the unhardened denoiser. With the adapter, also if a tensor
    it does not touch has changed, or one it touches is not W + ΔW, in the copies too.
    """
    target, info = Path(target), source if isinstance(source, CheckpointInfo) else None
    if info is None and (adapter or Path(source).is_dir()):  # type: ignore[arg-type]
        info = detect(source)
    source = info.path if info else Path(source)  # type: ignore[arg-type]
    names = touched_tensors(info, adapter) if info and adapter else None
    if source.is_file():
        if names is not None and info:
            averages = moving_averages(info).items()
            names |= {copy: names[of] for copy, of in averages if of in names}
        changed, identical = _compare(source, target, adapter, names)
        return Verification(changed=tuple(changed), identical=tuple(identical))
    assert info is not None, "a folder is recognised above"
    sorted_files = sort_folder(info)
    rewritten = {path.relative_to(source) for path in sorted_files.rewritten}
    unhardened = {copy.where for copy in sorted_files.copies if copy.fate == "left out"}
    all_changed: list[str] = []
    all_identical: list[str] = []
    files: list[str] = []
    for path in sorted(p for p in target.rglob("*") if p.is_file()):
        own = path.relative_to(target)
        if own.as_posix() in unhardened:
            raise ExportError(f"{own.as_posix()} may hold the unhardened {info.family.denoiser}")
        if own in rewritten:
            changed, identical = _compare(source / own, path, adapter, names)
            all_changed += [f"{own.as_posix()}:{name}" for name in changed]
            all_identical += [f"{own.as_posix()}:{name}" for name in identical]
        elif own.parts != (SIDECAR,):
            if not _same_bytes(source / own, path):
                raise ExportError(f"{own.as_posix()} differs from the source's")
            files.append(own.as_posix())
    return Verification(
        changed=tuple(all_changed), identical=tuple(all_identical), files=tuple(files)
    )


def _compare(
    source: Path, target: Path, adapter: AnyAdapter | None, names: Touched | None
) -> tuple[list[str], list[str]]:
    old, new = read_header(source), read_header(target)
    if list(old.tensors.items()) != list(new.tensors.items()):
        raise ExportError(f"{target.name} has other tensors than {source.name}")
    changed: list[str] = []
    identical: list[str] = []
    with source.open("rb") as one, target.open("rb") as other:
        for name, entry in sorted(old.tensors.items(), key=lambda item: item[1].begin):
            one.seek(old.data_start + entry.begin)
            other.seek(new.data_start + entry.begin)
            same = all(one.read(size) == other.read(size) for size in _chunks(entry.nbytes))
            (identical if same else changed).append(name)
            if names is None:
                continue
            if not same and name not in names:
                raise ExportError(
                    f"{target.name}: {name} changed, which the adapter does not touch"
                )
            if name in names and adapter:
                _check_merged(one, other, old, new, name, names[name], adapter)
    return changed, identical


def _check_merged(
    one, other, old: Header, new: Header, name: str, pieces: tuple[Piece, ...], adapter: AnyAdapter
) -> None:
    entry = old.tensors[name]
    one.seek(old.data_start + entry.begin)
    other.seek(new.data_start + entry.begin)
    expected = Tally().change(name, pieces, adapter)(entry, bytearray(one.read(entry.nbytes)))
    if expected.tobytes() != other.read(entry.nbytes):
        raise ExportError(f"{name} is not the source's weight plus the adapter's change")


def _same_bytes(one: Path, other: Path) -> bool:
    if not one.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        return all(first.read(n) == second.read(n) for n in _chunks(one.stat().st_size))


def _chunks(size: int):
    for start in range(0, size, CHUNK):
        yield min(CHUNK, size - start)
