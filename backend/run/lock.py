"""Lock of a run folder: only one process at a time works on it.

The lock is the operating system's own, on `run.lock`, so it ends with its process, however that
ends: a stale lock cannot be left behind. `run.pid` names the process for the error message; it is
a file of its own because filelock empties the file that it locks.
Within one process the folder may be opened again (a traceback may keep an earlier lock alive).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import RunError
from ..text.regular_file import is_special

LOCK, HOLDER = "run.lock", "run.pid"

_locks: dict[Path, BaseFileLock] = {}  # by folder; each counts how often this process holds it


class RunLock:
    """A lock, held from construction until `release` or garbage collection."""

    def __init__(self, folder: Path):
        for name in (LOCK, HOLDER):  # opening them to write would reach through a link
            if (folder / name).is_symlink():
                raise RunError(f"{folder / name} is a link: remove it, if the folder is yours")
            if is_special(folder / name):
                raise RunError(f"{folder / name} is a pipe or device: remove it, if it is yours")
        path = Path(os.path.realpath(folder))  # unlike `resolve`, it bears a loop of links
        if path not in _locks:
            _locks[path] = FileLock(path / LOCK, thread_local=False)
        self._lock = _locks[path]
        _acquire(self._lock, folder)
        self._holds = True

    def release(self) -> None:
        if self._holds:
            self._holds = False
            self._lock.release()

    def __del__(self) -> None:
        if getattr(self, "_holds", False):
            self.release()


def _acquire(lock: BaseFileLock, folder: Path) -> None:
    holder = _read_holder(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder} is in use by another run (process {holder}): wait for it, stop it, or "
            "choose another run folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise RunError(
            f"{folder} cannot be locked ({error}): a run needs a folder on a local disk that it "
            "may write to"
        ) from None
    try:
        (folder / HOLDER).write_text(str(os.getpid()), encoding="utf-8")
    except OSError as error:
        lock.release()
        raise RunError(
            f"{folder} cannot be written ({error.strerror or error}): a run needs a folder that "
            "it may write to"
        ) from None


def _read_holder(folder: Path) -> str:
    """Return the number of the process that last locked the folder."""
    for name in (HOLDER, LOCK):  # older versions wrote it into the lock file itself
        with suppress(OSError, ValueError):
            if text := (folder / name).read_text(encoding="utf-8").strip():
                return text
    return "unknown"
