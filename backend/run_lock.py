"""One process at a time works on a run folder.

The lock is the operating system's own on `run.lock`, so it ends with its process, however that
ends: no stale lock is ever left to detect. The file holds the process number for the message.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from .errors import RunError


def take_lock(path: Path) -> IO[str]:
    """Lock the folder `path`; closing the returned file lets go."""
    file = (path / "run.lock").open("a+", encoding="utf-8")
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 20)  # a byte nobody reads, so that the holder's number stays readable
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise RunError(
            f"{path} is in use by another run (process {holder}): wait for it, stop it, or choose "
            "another run folder"
        ) from None
    except OSError as error:
        file.close()
        raise RunError(
            f"{path} cannot be locked ({error}): put the run folder on a local disk"
        ) from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file
