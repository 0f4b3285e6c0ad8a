"""Hashes and copies a stream of bytes, on threads beside the reading.

hashlib and files release the interpreter's lock, so several hashes and the writing of one stream
cost as much as the slowest of them where there are cores. Buffers are reused: at most six chunks of
8 MiB are alive.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from .info import CheckpointInfo

CHUNK = 8 << 20
_IN_FLIGHT = 4
_MIB = 1 << 20
_SMALL = _MIB


def sha256_of(path: Path, *, stage: str = "hash", on_progress: ProgressCallback = silent) -> str:
    """Return the SHA-256 of a file in hex."""
    total = path.stat().st_size
    if total < _SMALL:  # a pack has hundreds of pictures: buffer and thread cost more than the hash
        content = path.read_bytes()
        if content:
            on_progress(progress(stage, len(content), total))
        return hashlib.sha256(content).hexdigest()
    digest, done = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file, Pipe(digest=digest.update) as pipe:
        while chunk := pipe.read(file, CHUNK):
            pipe.feed(chunk, "digest")
            done += len(chunk)
            on_progress(progress(stage, done, total))
        pipe.drain()
    return digest.hexdigest()


def source_hashes(
    info: CheckpointInfo, *, on_progress: ProgressCallback = silent
) -> dict[str, str]:
    """Return the SHA-256 of each weight file of a checkpoint, by its name within the folder."""
    return {
        source_name(info, path): sha256_of(path, on_progress=on_progress) for path in info.headers
    }


def source_name(info: CheckpointInfo, path: Path) -> str:
    """Return the name of a checkpoint's file in `source_hashes`."""
    if path == info.path:
        return path.name
    if info.layout == "ldm":  # a companion, which may be called like the denoiser's file
        return f"{path.parent.name}/{path.name}"
    return path.relative_to(info.path).as_posix()


def tensor_sha256_of(path: Path, *, on_progress: ProgressCallback = silent) -> str:
    """Return ModelSpec's `hash_sha256`, in hex: SHA-256 of the bytes after a safetensors header."""
    total, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb", buffering=0) as file, Pipe(digest=digest.update) as pipe:
        done = 8 + int.from_bytes(file.read(8), "little")
        file.seek(done)
        while chunk := pipe.read(file, CHUNK):
            pipe.feed(chunk, "digest")
            done += len(chunk)
            on_progress(progress("hash", done, total))
        pipe.drain()
    return digest.hexdigest()


class Pipe:
    """Passes bytes to several takers at once, each on its thread, in order, with bounded memory.

    takers: what is called with each piece by name, such as a hash's `update` or a file's `write`.
    What one raises is raised by the next call here.
    """

    def __init__(self, **takers: Callable[[Any], object]) -> None:
        self._takers = takers
        self._threads = {name: ThreadPoolExecutor(1) for name in takers}
        self._pending: deque[tuple[bytearray | None, list[Future[object]]]] = deque()
        self._free: list[bytearray] = []
        self._held: bytearray | None = None

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads.values():
            thread.shutdown(cancel_futures=True)

    def read(self, file: IO[bytes], size: int) -> memoryview:
        """Read up to `size` (at most CHUNK) bytes to a buffer, reused once all have taken it."""
        while len(self._pending) >= _IN_FLIGHT:
            self._finish()
        if self._held is not None:
            self._free.append(self._held)
        self._held = self._free.pop() if self._free else bytearray(CHUNK)
        view = memoryview(self._held)[:size]
        return view[: file.readinto(view)]  # type: ignore[attr-defined]

    def feed(self, data: Any, *names: str) -> None:
        """Hand bytes to the named takers; they must not change until all have taken them."""
        while len(self._pending) >= _IN_FLIGHT:
            self._finish()
        work = [self._threads[name].submit(self._takers[name], data) for name in names]
        self._pending.append((self._held, work))
        self._held = None

    def drain(self) -> None:
        """Wait until everything has been taken."""
        while self._pending:
            self._finish()

    def _finish(self) -> None:
        buffer, work = self._pending.popleft()
        for each in work:
            each.result()
        if buffer is not None:
            self._free.append(buffer)


def progress(stage: str, done: int, total: int) -> Progress:
    """Convert bytes to MiB, rounded up, so that the last step is the total."""
    return Progress(stage=stage, step=steps_of(done), total=max(1, steps_of(total)))


def steps_of(size: int) -> int:
    """Return the steps in which a pass over so many bytes is reported."""
    return -(-size // _MIB)
