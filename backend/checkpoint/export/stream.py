"""Copy a safetensors file, changing some tensors on the way, at the speed of the disk.

The changed tensors keep their type and shape, so the data section keeps its layout: only the
header before it differs. The file is read once in order; hashes and the writing run on threads
beside it. At most six pieces are in memory: chunks of 8 MiB, or one changed tensor each. The disk
starts to write while more is coming, so that there is no long flush at the end.

The header holds the hash of the data that follow it, so its place is kept free, filled in at the
end, and only a caller who asks for the hash of the whole has the new file read once more. Bytes are
never copied inside the kernel (copy_file_range), because each is hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...errors import ExportError
from ...progress import ProgressCallback, silent
from ..hashing import CHUNK, Pipe, progress, sha256_of, tensor_sha256_of
from ..header import Header, TensorEntry
from ..metadata import NO_HASH

PARTIAL = ".resalign-partial"
_FLUSH = 256 << 20  # bytes written before the disk is asked to begin

# Old bytes of a tensor (left as they are) to new ones of the same length.
Change = Callable[[TensorEntry, bytearray], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashes:
    """Hashes, SHA-256 in hex: of the files, and of the bytes after their headers."""

    source: str = NO_HASH
    tensors: str = NO_HASH
    result: str = NO_HASH


def rewrite(
    source: Path,
    target: Path,
    header: Header,
    changes: Mapping[str, Change],
    metadata: Callable[[Hashes], dict[str, str]],
    *,
    hash_file: bool = False,
    on_progress: ProgressCallback = silent,
) -> Hashes:
    """Write `target`: `source` with the tensors in `changes` replaced. In place in one move.

    hash_file: read the new file once more for its own SHA-256; else `Hashes.result` is empty.
    metadata: the new header's, called with hashes not known yet (all zero) and when they are; both
    must give texts of the same length. Whatever `on_progress` raises leaves no file.
    """
    room = len(encode_header(header, metadata(Hashes())))
    total = header.data_bytes
    of_source, of_tensors = hashlib.sha256(), hashlib.sha256()
    with (
        open_partial(target) as (file, partial),
        source.open("rb", buffering=0) as reader,
        _Writer(file) as writer,
    ):
        before = os.fstat(reader.fileno())
        writer.write(bytes(room))
        with Pipe(source=of_source.update, tensors=of_tensors.update, target=writer.write) as pipe:
            pipe.feed(reader.read(header.data_start), "source")
            for begin, old, change in _pieces(reader, header, changes, pipe):
                if change is None:
                    pipe.feed(old, "source", "tensors", "target")
                else:
                    new = change[1](change[0], old)
                    pipe.feed(old, "source")
                    pipe.feed(new, "tensors", "target")
                done = begin + len(old)
                on_progress(progress("export", done, total))
            pipe.drain()
        hashes = Hashes(source=of_source.hexdigest(), tensors=of_tensors.hexdigest())
        after = os.fstat(reader.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ExportError(f"{source.name} changed while it was read: export it again")
        encoded = encode_header(header, metadata(hashes))
        if len(encoded) != room:
            raise AssertionError("the header changed its length with the hashes")
        file.seek(0)
        file.write(encoded)
        file.flush()
        whole = ""
        if hash_file:
            with ThreadPoolExecutor(1) as disk:
                synced = disk.submit(os.fsync, file.fileno())
                whole = sha256_of(partial, stage="hash", on_progress=on_progress)
                synced.result()
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), mode_of_copy(before.st_mode))
    return Hashes(**{**{k: getattr(hashes, k) for k in hashes.__slots__}, "result": whole})


class _Writer:
    """Writes pieces, and has what was written brought to the disk in the background."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._since = file, 0
        self._disk = ThreadPoolExecutor(1)
        self._flush: Future[None] | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._disk.shutdown(cancel_futures=True)

    def write(self, data: Any) -> None:
        self._file.write(data)
        self._since += len(data)
        if self._since >= _FLUSH and (self._flush is None or self._flush.done()):
            if self._flush:
                self._flush.result()
            self._file.flush()
            self._since, self._flush = 0, self._disk.submit(os.fsync, self._file.fileno())


def encode_header(header: Header, metadata: Mapping[str, str]) -> bytes:
    """Return length and JSON, tensors in the source's order, padded to a multiple of 8 bytes."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, entry in header.tensors.items():
        content[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def fill_tensor_hash(path: Path) -> str:
    """Put the SHA-256 of a file's tensors in the place that its header keeps for it.

    For a file that another program has written: the header holds `NO_HASH` until its tensors are
    known. Returns the hash; raises an ExportError if the header has no such place.
    """
    found = tensor_sha256_of(path)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        place = header.find(f"0x{NO_HASH}".encode())
        if place < 0:
            raise ExportError(f"{path.name} keeps no place for the hash of its tensors")
        file.seek(8 + place)
        file.write(f"0x{found}".encode())
    return found


def _pieces(
    reader: IO[bytes], header: Header, changes: Mapping[str, Change], pipe: Pipe
) -> Iterator[tuple[int, Any, tuple[TensorEntry, Change] | None]]:
    """Yield (offset in the data, bytes, change) in file order; a changed tensor is one piece."""
    position = 0
    touched = sorted((header.tensors[name].begin, name) for name in changes)
    for begin, name in [*touched, (header.data_bytes, "")]:
        while position < begin:
            chunk = pipe.read(reader, min(CHUNK, begin - position))
            if not chunk:
                raise ExportError("the source ended early: it is being written to, or damaged")
            yield position, chunk, None
            position += len(chunk)
        if name:
            entry = header.tensors[name]
            old = bytearray(entry.nbytes)
            view, filled = memoryview(old), 0
            while filled < len(old):
                got = reader.readinto(view[filled:])  # type: ignore[attr-defined]
                if not got:
                    raise ExportError("the source ended early: it is being written to, or damaged")
                filled += got
            yield position, old, (entry, changes[name])
            position = entry.end


@contextlib.contextmanager
def open_partial(target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A file `<target>.resalign-partial` that becomes `target` in one move, or vanishes.

    Leftovers of a killed export are overwritten; a lock protects those of a running one.
    """
    partial = target.with_name(target.name + PARTIAL)
    try:
        file = _locked(partial)
    except OSError as error:
        raise ExportError(f"{partial} cannot be written: {error.strerror or error}") from error
    try:
        try:
            yield file, partial
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":  # an open file cannot be moved there
                file.close()
            os.replace(partial, target)
        except OSError as error:
            raise ExportError(f"{target} cannot be written: {error.strerror or error}") from error
    except BaseException:
        if os.name == "nt":
            file.close()
        partial.unlink(missing_ok=True)
        raise
    finally:
        # a buffered rest that does not fit on the disk must not hide the first error
        with contextlib.suppress(OSError):
            file.close()
    sync_folder(target.parent)


def mode_of_copy(mode: int) -> int:
    """Return the permissions of a copy: those of its source that the umask allows."""
    mask = os.umask(0o077)
    os.umask(mask)
    return stat.S_IMODE(mode) & ~mask


def sync_folder(folder: Path) -> None:
    """Make the move itself survive a power cut, where the system can."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _locked(partial: Path) -> IO[bytes]:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        handle = os.open(partial, flags, 0o600)
        if lock(handle, partial):
            os.ftruncate(handle, 0)
            return os.fdopen(handle, "wb")
        os.close(handle)


def lock(handle: int, partial: Path) -> bool:
    """Lock an open file or folder; False if another export moved it away in the meantime."""
    try:
        import fcntl
    except ImportError:  # Windows, where the open file itself keeps others out
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ExportError(f"another export is writing {partial.name}: wait for it") from None
    except OSError:  # a file system without locks
        return True
    try:
        return os.path.samestat(os.fstat(handle), os.stat(partial))
    except FileNotFoundError:
        return False
