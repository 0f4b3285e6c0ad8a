"""A disk that fails or dies at a chosen operation: a layer around the file functions of Python.

It counts what changes a folder (open for writing, write, fsync, move, truncate, remove, create) and
at operation number `at` either raises, as a full disk does from then on, or ends the process: half
of a write gets to the disk, and no later operation does anything, those of clean-ups included.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resalign.backend.errors import ResAlignError

_OPEN, _OS_OPEN = io.open, os.open
_SPACE = {"open", "write", "mkdir", "os.open"}  # what needs room on a disk


class Killed(BaseException):
    """The process was killed. Not an `Exception`, so that no handler continues."""


class FaultyDisk:
    """at: the operation to fail, from 1; 0 counts only. kind: `full` or `kill`."""

    def __init__(self, folder: Path, at: int = 0, kind: str = "kill") -> None:
        self.folder, self.at, self.kind = os.path.realpath(folder), at, kind
        self.count, self.broken = 0, False
        self.files: list[Any] = []
        self.handles: list[int] = []

    def holds(self, path: Any) -> bool:
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        real = os.path.realpath(os.fspath(path))
        return (real if isinstance(real, str) else os.fsdecode(real)).startswith(self.folder)

    def step(self, what: str) -> None:
        """Count an operation; raise where it fails."""
        self.count += 1
        self.broken = self.broken or self.count == self.at
        if self.broken and self.kind == "kill":
            raise Killed
        if self.broken and what in _SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _File:
    """A file without a buffer, whose writes are counted."""

    def __init__(self, disk: FaultyDisk, file: Any, encoding: str) -> None:
        self._disk, self._file, self._encoding = disk, file, encoding

    def write(self, data: Any) -> int:
        plain = data.encode(self._encoding) if isinstance(data, str) else memoryview(data).cast("B")
        try:
            self._disk.step("write")
        except BaseException:
            if self._disk.count == self._disk.at:
                self._file.write(plain[: len(plain) // 2])
            raise
        self._file.write(plain)
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def faulty_disk(
    monkeypatch: Any, folder: Path, at: int = 0, kind: str = "kill"
) -> Iterator[FaultyDisk]:
    """Fail at operation `at` on files below `folder`, within the block."""
    disk = FaultyDisk(folder, at, kind)

    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None,
               errors: Any = None, newline: Any = None, closefd: bool = True,
               opener: Any = None) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or not disk.holds(file):
            return _OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        disk.step("open")
        plain = mode.replace("t", "").replace("b", "") + "b"
        real = _OPEN(file, plain, 0, closefd=closefd, opener=opener)
        disk.files.append(real)
        return _File(disk, real, encoding or "utf-8")

    def os_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and disk.holds(path):
            disk.step("os.open")
            handle = _OS_OPEN(path, flags, *args, **options)
            disk.handles += [handle] * (not str(path).endswith("run.lock"))  # held by an object
            return handle
        return _OS_OPEN(path, flags, *args, **options)

    def counted(name: str) -> Any:
        real = getattr(os, name)

        def call(path: Any, *args: Any, **options: Any) -> Any:
            if disk.holds(path):
                disk.step(name)
            return real(path, *args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr("builtins.open", opened)
        patch.setattr(os, "open", os_open)
        for name in ("replace", "rename", "fsync", "truncate", "ftruncate", "unlink", "remove",
                     "mkdir", "rmdir"):  # fmt: skip
            patch.setattr(os, name, counted(name))
        try:
            yield disk
        finally:
            for file in disk.files:  # whoever was killed has not closed them
                file.close()
            for handle in disk.handles if disk.broken else ():
                # not closed, and not another file's by now
                if disk.holds(handle) and not os.readlink(f"/proc/self/fd/{handle}").endswith(
                    "run.lock"
                ):
                    os.close(handle)


def fails_at(
    monkeypatch: Any, work: Callable[[], object], folder: Path, at: int, kind: str
) -> bool:
    """Work with a fault at an operation below `folder`; return False if it ended before that.

    A full disk must be refused in one line, and nothing else may be raised.
    """
    message = ""
    with faulty_disk(monkeypatch, folder, at, kind) as disk:
        try:
            work()
        except Killed:
            pass
        except ResAlignError as error:
            message = str(error)
    assert "\n" not in message and (kind == "full" or not message)
    return disk.broken
