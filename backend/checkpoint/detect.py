"""Recognises a checkpoint from its headers only: the file's or folder's kind, then its family.

Nothing is fetched and, one small tensor apart, no weights are read: milliseconds for any size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import CheckpointError, ConfigError, UndecidedError
from ..families.base.refuse import Other, other_kind
from ..families.base.shapes import reading_shapes
from ..families.base.stored import DECISIONS, Decided
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
    otherwise: str = "",
    parts: Mapping[str, str] | None = None,
    alone: bool = False,
    folders: Sequence[Path] = (),
) -> CheckpointInfo:
    """Recognise the checkpoint at `path`; a CheckpointError says why it cannot be used.

    A checkpoint that has been recognised is returned as it is, so that whoever needs one can be
    given either.

    Args:
        prediction: `epsilon`, `v` or `v-zsnr` decides what a single file predicts, whatever it says
            itself; empty follows the file.
        otherwise: decides likewise, but only for a file that contradicts itself.
        parts: files of components that a single file does not hold, by component; those without one
            are looked for (`companions`).
        alone: only the components that a single file holds itself are described, which is enough to
            compare its denoiser, not to load it.
        folders: further ones in which companions are looked for, such as those of a host.
    """
    if otherwise and not prediction:
        try:
            return detect(path, parts=parts, alone=alone, folders=folders)
        except UndecidedError:
            return detect(path, prediction=otherwise, parts=parts, alone=alone, folders=folders)
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
    return detect_file(path, read_header(path), prediction, parts, alone=alone, folders=folders)


def detect_file(
    path: Path,
    header: Header,
    decided: str = "",
    parts: Mapping[str, str] | None = None,
    *,
    alone: bool = False,
    folders: Sequence[Path] = (),
) -> CheckpointInfo:
    """Recognise a single file whose header has been read. decided: `prediction` of `detect`."""
    beside = Companions(path, parts or {}, folders)
    file = stored_file(path, header, decided, beside.find, alone=alone)
    family = family_of_file(file)
    if family is None:
        raise CheckpointError(unsupported(header).sentence(path.name))
    with reading_shapes(path.name):
        found = family.recognition.describe_file(file)
    known = [name for name in family.components if name in found.configs]
    files = {name: (found.files.get(name, path),) for name in known}
    own = {name: file for name, file in (parts or {}).items() if name not in found.files}
    _refuse_parts(path, own, "holds them itself, or its family has no such component")
    headers = {path: header, **{p: beside.headers[p] for p in found.files.values()}}
    return describe(path, family, "ldm", found, files, headers, decided)


def detect_denoiser(
    path: str | Path | CheckpointInfo,
    *,
    prediction: str = "",
    parts: Mapping[str, str] | None = None,
) -> CheckpointInfo:
    """Recognise a checkpoint as far as comparing or rewriting its denoiser takes: a text encoder or
    VAE that lies elsewhere and is not found is left out. prediction, parts: as of `detect`.
    """
    try:
        return detect(path, prediction=prediction, parts=parts)
    except CheckpointError:
        return detect(path, prediction=prediction, alone=True)


def detect_as(
    path: str | Path | CheckpointInfo, decision: str, *, alone: bool = False
) -> CheckpointInfo:
    """Recognise the file of a loaded model, of which a host or program knows what it predicts.

    decision: that, as `decision_of` names it; it overrules a file that says otherwise. alone: as of
    `detect`.
    """
    info = detect(path, otherwise=decision, alone=alone)
    known = DECISIONS.get(decision)
    if info.layout == "diffusers" or not known or info.prediction_type == known.prediction:
        return info
    return detect(info.path, prediction=decision, alone=alone)


def decision_needed(path: Path, hardened: Path) -> Decided:
    """Return what an original predicts by its hardened file, where it contradicts itself; else "".

    The hardened file states it: whoever hardened it had to decide.
    """
    try:
        detect(path, alone=True)
    except UndecidedError:
        return detect(hardened, alone=True).decision
    return ""


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
