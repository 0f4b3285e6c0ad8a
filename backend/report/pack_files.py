"""Writes the files of a pack as one: a folder or a .zip, all of it or nothing."""

from __future__ import annotations

import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint.hashing import sha256_of
from ..errors import ExportError
from .pack_sign import SIGNATURE, sign_folder

SUMS = "SHA256SUMS"


def is_zip(output: Path) -> bool:
    return output.suffix.lower() == ".zip"


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse an output that exists, and with overwrite one that holds anything but a pack."""
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise ExportError(f"{output} exists: choose another name, or turn on `overwrite`")
    zipped = is_zip(output)
    if output.is_symlink() or output.is_file() is not zipped:
        raise ExportError(f"{output} is not a pack of this kind: choose another name")
    if not zipped:
        inside = {p.relative_to(output).as_posix() for p in output.rglob("*") if not p.is_dir()}
        sums = output / SUMS
        known = sums.read_text("utf-8").splitlines() if sums.is_file() else []
        foreign = sorted(inside - {SUMS, SIGNATURE} - {line[66:] for line in known})
        if foreign:
            raise ExportError(
                f"{output} holds {foreign[0]}, which no pack wrote: choose another name, or move "
                "it away"
            )


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give a new folder beside the output to write a pack in; on failure nothing stays of it."""
    staging = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        staging.mkdir(parents=True)
        yield staging
    except OSError as error:
        why = error.strerror or error
        raise ExportError(f"{output} cannot be written ({why}): check folder and disk") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_pack(
    staging: Path,
    output: Path,
    texts: Mapping[str, str],
    files: Sequence[str],
    *,
    key: Path | None = None,
) -> tuple[str, ...]:
    """Write texts and hashes beside the files that are in `staging`, and move all to the output.

    key: private key to sign everything with; None signs nothing.
    """
    for name, text in texts.items():
        (staging / name).write_text(text, encoding="utf-8", newline="\n")
    names = sorted([*texts, *files])
    sums = "".join(f"{sha256_of(staging / name)}  {name}\n" for name in names)
    (staging / SUMS).write_text(sums, encoding="utf-8", newline="\n")
    names.append(SUMS)
    if key is not None:
        sign_folder(staging, key)
        names.append(SIGNATURE)
    if is_zip(output):
        archive = staging / "pack.zip"
        _zip(staging, names, archive)
        os.replace(archive, output)
    else:
        _move(staging, output)
    return tuple(names)


def _zip(folder: Path, names: list[str], archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            entry = zipfile.ZipInfo(name)  # of 1980: the same pack gives the same bytes
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            file.writestr(entry, (folder / name).read_bytes())


def _move(staging: Path, output: Path) -> None:
    """Put the new folder in place of an old one, which comes back if that fails."""
    old = staging.with_suffix(".old")
    if output.exists():
        os.replace(output, old)
    try:
        os.replace(staging, output)
    except BaseException:
        if old.exists():
            os.replace(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)
