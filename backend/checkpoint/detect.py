"""Recognises a checkpoint from its headers only: the file's or folder's kind, then its family.

Nothing is fetched and, one small tensor apart, no weights are read: milliseconds for any size.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, ConfigError
from ..families.base.refuse import Other, other_kind
from ..families.base.stored import DECISIONS
from ..families.registry import family_of_file
from .folder import detect_folder
from .header import Header, read_header
from .info import CheckpointInfo, describe
from .stored import stored_file


def detect(path: str | Path | CheckpointInfo, *, prediction: str = "") -> CheckpointInfo:
    """Recognise the checkpoint at `path`; a CheckpointError says why it cannot be used.

    A checkpoint that has been recognised is returned as it is, so that whoever needs one can be
    given either. prediction: `epsilon`, `v` or `v-zsnr` decides what a single file predicts,
    whatever it says itself; empty follows the file.
    """
    if prediction and prediction not in DECISIONS:
        raise ConfigError(
            f"prediction is {prediction!r}; choose from {', '.join(DECISIONS)}, or leave it empty"
        )
    if isinstance(path, CheckpointInfo):
        return path
    path = Path(path)
    if path.is_dir():
        if prediction:
            raise ConfigError(
                f"prediction is {prediction!r}, but {path} is a diffusers folder: there, "
                "prediction_type in scheduler/scheduler_config.json decides; edit that"
            )
        return detect_folder(path)
    return detect_file(path, read_header(path), prediction)


def detect_file(path: Path, header: Header, decided: str = "") -> CheckpointInfo:
    """Recognise a single file whose header has been read. decided: `prediction` of `detect`."""
    file = stored_file(path, header, decided)
    family = family_of_file(file)
    if family is None:
        raise CheckpointError(unsupported(header).sentence(path.name))
    found = family.recognition.describe_file(file)
    files = dict.fromkeys(family.components, (path,))
    return describe(path, family, "ldm", found, files, {path: header}, decided)


def is_claimed(path: Path, header: Header) -> bool:
    """Return True if some family recognises the file as its own, faulty or not."""
    return family_of_file(stored_file(path, header)) is not None


def unsupported(header: Header) -> Other:
    """Describe a file that no family claims."""
    unknown = Other("unknown", "of an unknown layout", "give a whole Stable Diffusion checkpoint")
    return other_kind(header.tensors) or unknown
