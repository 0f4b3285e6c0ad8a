"""A diffusers folder as a checkpoint: its JSON files, its weight files, and their headers.

Weights may be sharded. Only `.safetensors` files are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..families.base.stored import StoredFolder
from ..families.registry import all_families, family_of_folder
from ..text import json_text
from .header import read_header
from .info import CheckpointInfo, describe

_INDEXES = ("model_index.json", "modular_model_index.json")
_WEIGHTS = "diffusion_pytorch_model"


def detect_folder(path: Path) -> CheckpointInfo:
    """Recognise the diffusers folder at `path`; a CheckpointError says why it cannot be used."""
    index = _model_index(path)
    folder = StoredFolder(path, index, lambda name: read_json(path / name))
    try:
        family = family_of_folder(folder)
        if family is None:
            raise CheckpointError(
                f"{path} holds a {index.get('_class_name', 'model without a U-Net')} (SD3, Flux or "
                "alike), which cannot be hardened; supported are "
                + ", ".join(each.title for each in all_families())
            )
        found = family.recognition.describe_folder(folder)
    except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}: its config files contradict themselves or diffusers' form "
            f"({type(error).__name__}: {error}); fetch the folder again"
        ) from error
    files = {
        name: _weight_files(path / name, _stem(path / name, text=name in family.text_encoders))
        for name in family.components
    }
    order = dict.fromkeys((family.denoiser, family.vae, *family.text_encoders))
    headers = {file: read_header(file) for name in order for file in files[name]}
    return describe(path, family, "diffusers", found, files, headers)


def index_of(path: Path) -> Path | None:
    """Return the file that lists a folder's components, None where it has none."""
    return next((path / name for name in _INDEXES if (path / name).is_file()), None)


def _model_index(path: Path) -> dict[str, Any]:
    index = index_of(path)
    if index is None:
        single = sorted(file.name for file in path.glob("*.safetensors"))
        hint = f"; or give one of its files, e.g. {single[0]}" if single else ""
        raise CheckpointError(
            f"{path} is not a diffusers folder (it has no model_index.json): give the folder that "
            f"holds model_index.json, unet and vae{hint}"
        )
    return read_json(index)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a folder, with or without a byte order mark."""
    try:
        if path.stat().st_size > 1_000_000:
            raise CheckpointError(f"{path} is too large for a config file: fetch the folder again")
        value = json_text.read(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: the folder is incomplete; fetch all of it again"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object: fetch the folder again")
    return value


def _stem(folder: Path, *, text: bool) -> str:
    """Return what a component's files are called: text encoders are transformers' (`model`), but
    for those that diffusers has itself."""
    own = any(folder.glob(f"{_WEIGHTS}*")) and not any(folder.glob("model.*"))
    return "model" if text and not own else _WEIGHTS


def _weight_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """Find a component's weight files: the full ones where there are variants as well."""
    for variant in ("", ".fp16"):
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return (single,)
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return _shards(index)
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights only as a pickle ({pickles[0]}); opening one can run code, "
            "so they are refused: fetch the .safetensors version, or convert it"
        )
    raise CheckpointError(
        f"{folder} has no weights ({stem}.safetensors): the folder is incomplete; fetch it again"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(read_json(index)["weight_map"].values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names a file outside of its folder: {name!r}")
    return tuple(index.parent / name for name in names)
