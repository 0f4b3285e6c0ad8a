"""Files of a run: read and replaced whole; what the system refuses becomes one clear line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, ConfigError, DataError, RunError
from ..text.regular_file import check_regular

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def explained(path: Path, what: str = "written") -> Iterator[None]:
    """Turn an OSError into a RunError that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        advice = "make room on that disk" if full else "check its folder and permissions"
        raise RunError(
            f"{path} cannot be {what} ({error.strerror or error}): {advice}, then continue"
        ) from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file atomically; its bytes and its name are on disk afterwards."""
    temporary = path.with_name(path.name + ".tmp")
    with explained(path):
        temporary.unlink(missing_ok=True)  # it may be a link
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)


def read_file(path: Path) -> bytes:
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error})") from None


def make_folder(path: Path, what: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{what} {path} cannot be created: {error.strerror or error}") from None


@contextmanager
def leaving_nothing(folder: Path, begun: Callable[[], bool]) -> Iterator[None]:
    """Remove a folder that did not exist before, where the work in it is refused.

    begun: whether there is something in it to continue from.
    """
    existed = os.path.lexists(folder)
    try:
        yield
    except (ConfigError, CheckpointError, DataError):
        if not existed and not begun():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    with explained(path), path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a move inside the folder survive a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
