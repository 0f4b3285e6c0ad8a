"""SHA-256 of what passes by, on threads beside the reading and writing.

hashlib lets go of the interpreter's lock, so several hashes of one stream cost as much as one where
there are cores for them. Buffers are reused: at most six chunks of 8 MiB are alive.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from ..progress import Progress, ProgressCallback, silent

CHUNK = 8 << 20
_IN_FLIGHT = 4
_MIB = 1 << 20


def sha256_of(path: Path, *, stage: str = "hash", on_progress: ProgressCallback = silent) -> str:
    """SHA-256 of a file in hex."""
    total = path.stat().st_size
    with path.open("rb", buffering=0) as file, Hasher("file") as hasher:
        done = 0
        while chunk := hasher.read(file, CHUNK):
            hasher.feed(chunk, "file")
            done += len(chunk)
            on_progress(progress(stage, done, total))
        return hasher.digests()["file"]


def tensor_sha256_of(path: Path, *, on_progress: ProgressCallback = silent) -> str:
    """SHA-256 of all bytes after a safetensors header: ModelSpec's `hash_sha256`, in hex."""
    total = path.stat().st_size
    with path.open("rb", buffering=0) as file, Hasher("tensors") as hasher:
        done = 8 + int.from_bytes(file.read(8), "little")
        file.seek(done)
        while chunk := hasher.read(file, CHUNK):
            hasher.feed(chunk, "tensors")
            done += len(chunk)
            on_progress(progress("hash", done, total))
        return hasher.digests()["tensors"]


class Hasher:
    """Several SHA-256 at once, each on its thread, fed in order with bounded memory."""

    def __init__(self, *names: str) -> None:
        self._digests = {name: hashlib.sha256() for name in names}
        self._threads = {name: ThreadPoolExecutor(1) for name in names}
        self._pending: deque[tuple[bytearray | None, list[Future[None]]]] = deque()
        self._free: list[bytearray] = []
        self._held: bytearray | None = None

    def __enter__(self) -> Hasher:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads.values():
            thread.shutdown(cancel_futures=True)

    def read(self, file: IO[bytes], size: int) -> memoryview:
        """Up to `size` (at most CHUNK) bytes in a buffer that is reused once it has been hashed."""
        while len(self._pending) >= _IN_FLIGHT:
            self._finish()
        if self._held is not None:
            self._free.append(self._held)
        self._held = self._free.pop() if self._free else bytearray(CHUNK)
        view = memoryview(self._held)[:size]
        return view[: file.readinto(view)]  # type: ignore[attr-defined]

    def feed(self, data: Any, *names: str) -> None:
        """Add bytes to the named hashes; they must not change until they have been hashed."""
        while len(self._pending) >= _IN_FLIGHT:
            self._finish()
        work = [self._threads[name].submit(self._digests[name].update, data) for name in names]
        self._pending.append((self._held, work))
        self._held = None

    def digests(self) -> dict[str, str]:
        while self._pending:
            self._finish()
        return {name: digest.hexdigest() for name, digest in self._digests.items()}

    def _finish(self) -> None:
        buffer, work = self._pending.popleft()
        for each in work:
            each.result()
        if buffer is not None:
            self._free.append(buffer)


def progress(stage: str, done: int, total: int) -> Progress:
    """Bytes as MiB, rounded up, so that the last step is the total."""
    return Progress(stage=stage, step=-(-done // _MIB), total=max(1, -(-total // _MIB)))
