"""The system's effects on a command: closed streams, full disks, files that cannot be reached."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .console import Console

CLOSED = 141  # exit code where the reader of our output has gone, as of a program killed by SIGPIPE
_ADVICE = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in your quota",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the system has too many open files",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle",
    errno.EISDIR: "it is a folder",
    errno.ENOTDIR: "a part of its path is not a folder",
    errno.EFBIG: "the file system or a limit does not allow a file of this size",
    errno.EIO: "the disk reports an error",
}


def is_environment(error: Exception) -> bool:
    """Return True for an error of the system around us, and not of the program."""
    if isinstance(error, OSError):
        return error.errno in _ADVICE
    return "Symlink loop" in str(error)  # how pathlib says it before Python 3.13


def system_error(error: Exception) -> str:
    """Return one line: the file, what the system said, what to do."""
    if not isinstance(error, OSError):
        return f"{error}: its links lead in a circle"
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}: {_ADVICE.get(error.errno or 0, 'see above')}"


def open_streams() -> bool:
    """Give closed standard streams a place to go to; return whether there was a standard output.

    Without it the next file that is opened would get its number, and be written to as output.
    """
    shown = sys.stdout is not None
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                if nowhere != number:
                    os.dup2(nowhere, number)
                    os.close(nowhere)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    return shown


def close_output(console: Console) -> None:
    """Remove the bar and write what is left; a reader that has gone is not an error at exit."""
    with contextlib.suppress(BrokenPipeError):
        console.close()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
