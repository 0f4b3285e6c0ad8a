"""Refuses pipes and devices in the place of files, which would be read for ever.

A folder of a stranger's may hold a named pipe: opening one waits until somebody writes to it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def check_regular(path: Path) -> None:
    """Raise an OSError if the path is neither a file nor a folder, or cannot be looked at."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or device, not a file", str(path))


def is_special(path: Path) -> bool:
    """Return True for a pipe, socket or device."""
    return path.exists() and not path.is_file() and not path.is_dir()
