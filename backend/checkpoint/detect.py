"""Recognises a checkpoint from its headers only: the file's or folder's kind, then its family.

Nothing is fetched and, one small tensor apart, no weights are read: milliseconds for any size.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..families.base.refuse import Other, other_kind
from ..families.registry import family_of_file
from .folder import detect_folder
from .header import Header, read_header
from .info import CheckpointInfo, describe
from .stored import stored_file


def detect(path: str | Path | CheckpointInfo) -> CheckpointInfo:
    """Recognise the checkpoint at `path`; a CheckpointError says why it cannot be used.

    A checkpoint that has been recognised is returned as it is, so that whoever needs one can be
    given either.
    """
    if isinstance(path, CheckpointInfo):
        return path
    path = Path(path)
    if path.is_dir():
        return detect_folder(path)
    return detect_file(path, read_header(path))


def detect_file(path: Path, header: Header) -> CheckpointInfo:
    """Recognise a single file whose header has been read."""
    file = stored_file(path, header)
    family = family_of_file(file)
    if family is None:
        raise CheckpointError(unsupported(header).sentence(path.name))
    found = family.recognition.describe_file(file)
    files = dict.fromkeys(family.components, (path,))
    return describe(path, family, "ldm", found, files, {path: header})


def is_claimed(path: Path, header: Header) -> bool:
    """Return True if some family recognises the file as its own, faulty or not."""
    return family_of_file(stored_file(path, header)) is not None


def unsupported(header: Header) -> Other:
    """Describe a file that no family claims."""
    unknown = Other("unknown", "of an unknown layout", "give a whole Stable Diffusion checkpoint")
    return other_kind(header.tensors) or unknown
