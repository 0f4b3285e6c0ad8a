"""Recognises a checkpoint from its headers only: the file's or folder's kind, then its family.

Nothing is fetched and, one small tensor apart, no weights are read: milliseconds for any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from ..families.base.refuse import Other, other_kind
from ..families.base.stored import DECISIONS
from ..families.registry import family_of_file
from .companions import Companions
from .folder import detect_folder
from .header import Header, read_header
from .info import CheckpointInfo, describe
from .stored import stored_file


def detect(
    path: str | Path | CheckpointInfo,
    *,
    prediction: str = "",
    parts: Mapping[str, str] | None = None,
) -> CheckpointInfo:
    """Recognise the checkpoint at `path`; a CheckpointError says why it cannot be used.

    A checkpoint that has been recognised is returned as it is, so that whoever needs one can be
    given either. prediction: `epsilon`, `v` or `v-zsnr` decides what a single file predicts,
    whatever it says itself; empty follows the file. parts: files of components that a single file
    does not hold, by component; those without one are looked for (`companions`).
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
        _refuse_parts(path, parts or {}, "is a diffusers folder, which holds all of them")
        return detect_folder(path)
    return detect_file(path, read_header(path), prediction, parts)


def detect_file(
    path: Path, header: Header, decided: str = "", parts: Mapping[str, str] | None = None
) -> CheckpointInfo:
    """Recognise a single file whose header has been read. decided: `prediction` of `detect`."""
    beside = Companions(path, parts or {})
    file = stored_file(path, header, decided, beside.find)
    family = family_of_file(file)
    if family is None:
        raise CheckpointError(unsupported(header).sentence(path.name))
    found = family.recognition.describe_file(file)
    files = {name: (found.files.get(name, path),) for name in family.components}
    own = {name: file for name, file in (parts or {}).items() if name not in found.files}
    _refuse_parts(path, own, "holds them itself, or its family has no such component")
    headers = {path: header, **{p: beside.headers[p] for p in found.files.values()}}
    return describe(path, family, "ldm", found, files, headers, decided)


def _refuse_parts(path: Path, parts: Mapping[str, str], why: str) -> None:
    named = [name for name, file in parts.items() if file]
    if named:
        raise ConfigError(f"{' and '.join(named)}: leave it empty, as {path.name} {why}")


def is_claimed(path: Path, header: Header) -> bool:
    """Return True if some family recognises the file as its own, faulty or not."""
    return family_of_file(stored_file(path, header)) is not None


def unsupported(header: Header) -> Other:
    """Describe a file that no family claims."""
    unknown = Other("unknown", "of an unknown layout", "give a whole Stable Diffusion checkpoint")
    return other_kind(header.tensors) or unknown
