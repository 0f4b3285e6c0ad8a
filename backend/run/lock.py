"""One process at a time works on a run folder.

The lock is the operating system's own on `run.lock`, so it ends with its process, however that
ends: no stale lock is ever left to detect. The file holds the process number for the message.
Within one process the folder may be opened again (a traceback may keep the first one alive).
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import RunError

_held: dict[Path, tuple[int, int]] = {}  # folder -> (file descriptor, how many hold it)


class RunLock:
    """Held from birth until `release` or the end of its last reference."""

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        descriptor, holders = _held.get(self._folder, (-1, 0))
        if not holders:
            descriptor = _lock_file(folder)
        _held[self._folder] = descriptor, holders + 1
        self._holds = True

    def release(self) -> None:
        if not self._holds:
            return
        self._holds = False
        descriptor, holders = _held.pop(self._folder)
        if holders > 1:
            _held[self._folder] = descriptor, holders - 1
        else:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_holds", False):
            self.release()


def _lock_file(folder: Path) -> int:
    path = folder / "run.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the number, which stays readable
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError | PermissionError):
            holder = path.read_text(encoding="utf-8").strip() or "unknown"
            raise RunError(
                f"{folder} is in use by another run (process {holder}): wait for it, stop it, or "
                "choose another run folder"
            ) from None
        raise RunError(
            f"{folder} cannot be locked ({error}): put the run folder on a local disk"
        ) from None
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor
