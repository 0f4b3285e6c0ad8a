"""A folder of encoded tensors, addressed by the content they were made from.

One small `.safetensors` file per image, caption or synthesised batch; its name is the SHA-256 of
everything the tensors depend on, so nothing is ever out of date, and any number of runs may
share the folder. Entries carry a checksum that covers their key: one that is damaged, or lies
under another's name, is encoded again, with a warning.
No pixels and no text are in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import DataError

ENCODING_VERSION = 1  # raise it when the same content comes to mean other tensors
_CHECKSUM = "sha256"
_WRITING = ".writing-"  # begins the name of an entry that is not complete
_SAMPLES = 64  # values of each tensor that enter a fingerprint as they are
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

log = logging.getLogger(__name__)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing, from a cache that nobody else uses now."""
    for path in folder.glob(_WRITING + "*"):
        path.unlink(missing_ok=True)


class EncodingCache:
    """Tensors by key. Without a folder it keeps nothing, and every look-up misses."""

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def __bool__(self) -> bool:
        return self.folder is not None

    def holds(self, key: str) -> bool:
        """Return True if there is an entry; only `load` checks that it is intact."""
        path = self._path(key)
        return path is not None and path.is_file()

    def load(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors stored under a key, on the CPU; None if missing or damaged."""
        path = self._path(key)
        if path is None or not self.holds(key):
            return None
        try:
            tensors = safetensors.torch.load(path.read_bytes())
            checksum = tensors.pop(_CHECKSUM, torch.empty(0))
        except (SafetensorError, ValueError) as error:
            log.warning("cache entry %s is damaged (%s): encoding again", path.name, error)
            return None
        if bytes(checksum.tolist()) not in (_digest(tensors, key), _digest(tensors)):
            log.warning("cache entry %s is damaged (wrong checksum): encoding again", path.name)
            return None
        return tensors

    def save(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors under a key atomically, even if the process is killed."""
        path = self._path(key)
        if path is None:
            return
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        checksum = torch.tensor(list(_digest(tensors, key)), dtype=torch.uint8)
        blob = safetensors.torch.save({**tensors, _CHECKSUM: checksum})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_WRITING)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(blob)
            os.replace(temporary, path)
        except BaseException as error:
            Path(temporary).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.safetensors"

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"cache {self.folder}: cannot be written ({error.strerror or error}); free some space "
            "or choose another folder"
        )


def content_key(kind: str, *parts: str | bytes | int | float | None) -> str:
    """Return the key of an entry: its kind and the SHA-256 of everything that it depends on."""
    plain = [hashlib.sha256(p).hexdigest() if isinstance(p, bytes) else p for p in parts]
    text = json.dumps([ENCODING_VERSION, kind, *plain])
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


@torch.no_grad()
def fingerprint(*modules: torch.nn.Module) -> str:
    """Fingerprint the weights of networks on their own device; takes seconds even for SDXL.

    Covers, for each parameter: name, shape, type, 64 evenly spaced values, and the exact sum of
    all its bits read as integers, which any retraining, merge or cast changes. It is not a
    cryptographic hash: a cache has no adversary. It reads the memory, not the source file, so it
    also holds for models that a host handed over.
    """
    return fingerprint_of(*(dict(module.named_parameters()) for module in modules))


@torch.no_grad()
def fingerprint_of(*networks: Mapping[str, Tensor]) -> str:
    """Fingerprint the weights of networks by name, as `fingerprint` does those of modules."""
    found = hashlib.sha256()
    for network in networks:
        for name, tensor in sorted(network.items()):
            bits = tensor.detach().reshape(-1).view(_INTEGERS[tensor.element_size()])
            picks = torch.linspace(
                0, max(len(bits) - 1, 0), min(_SAMPLES, len(bits)), dtype=torch.double
            )
            values = bits[picks.long().to(bits.device)].tolist()
            total = _sum_of_bits(bits)
            found.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
            found.update(json.dumps([values, total]).encode())
    return found.hexdigest()


def _sum_of_bits(bits: Tensor) -> int:
    """Sum flat integers exactly, modulo 2⁶⁴, eight bytes at a time; the rest separately."""
    ratio = 8 // bits.element_size()
    if bits.storage_offset() % ratio:
        bits = bits.clone()
    whole = len(bits) // ratio * ratio
    total = bits[:whole].view(torch.int64).sum() + bits[whole:].sum(dtype=torch.int64)
    return int(total)


def _digest(tensors: dict[str, Tensor], key: str = "") -> bytes:
    """Return the checksum of an entry. key: empty for what older versions wrote."""
    found = hashlib.sha256(key.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.digest()
