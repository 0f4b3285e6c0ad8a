"""A folder of images with captions, as trainers keep them.

Captions come from, in this order:

    metadata.jsonl / metadata.csv   in a folder (Hugging Face imagefolder): `file_name`, relative
                                    to it, and `text`, `caption` or `prompt`
    picture.txt / picture.caption   beside picture.png (kohya); its first line that is not empty
    ImageSet.caption                for images that have none

Subfolders belong to the set; names that begin with a dot do not. Nothing is guessed: images
without a caption, metadata that names absent files and duplicates are errors that list them all.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..plan.images import ImageSet
from ..text import json_text
from .pixels import BROKEN, open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "caption", "prompt")
_SHOWN = 100  # names in a message


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image of a set. `name` is its path within the set's folder, with forward slashes."""

    path: Path
    name: str
    caption: str


def read_image_set(image_set: ImageSet) -> tuple[CaptionedImage, ...]:
    """List the images of a folder in the order of their names; no pixels are read."""
    folder = Path(image_set.folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"image set {folder}: no such folder")
    files = sorted(_files(folder))
    captions = _metadata(folder, files)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        raise DataError(f"image set {folder}: no images in it ({', '.join(SUFFIXES)})")
    found, missing = [], []
    for path in images:
        name = path.relative_to(folder).as_posix()
        caption = captions.get(path) or _sidecar(path) or image_set.caption.strip()
        if caption:
            found.append(CaptionedImage(path, name, caption))
        else:
            missing.append(name)
    if missing:
        raise DataError(
            f"image set {folder}: {len(missing)} of {len(images)} images have no caption: "
            f"{listed(missing)}; put a .txt file beside each, write a metadata.jsonl, or set "
            "`caption` for all that have none"
        )
    return tuple(found)


def find_broken(images: Iterable[CaptionedImage]) -> dict[str, str]:
    """Decode every image; return name and reason of each that cannot be decoded."""
    broken = {}
    for image in images:
        try:
            open_image(image.path)
        except BROKEN as error:
            broken[image.name] = reason(error)
    return broken


def reason(error: BaseException) -> str:
    """Return Pillow's message on a broken file, without the repr of the file object."""
    text = str(error) or type(error).__name__
    return "not an image" if text.startswith("cannot identify image file") else text


def listed(names: Iterable[str]) -> str:
    """Format names for a message: up to a hundred, then how many more."""
    names = list(names)
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _files(folder: Path) -> Iterator[Path]:
    """Find all files but hidden ones, in linked folders too; each folder once: links may loop."""
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in names if not name.startswith("."))


def _sidecar(path: Path) -> str:
    for suffix in CAPTION_SUFFIXES:
        file = path.with_suffix(suffix)
        if file.is_file():
            lines = [line.strip() for line in _text(file).splitlines()]
            return next((line for line in lines if line), "")
    return ""


def _metadata(folder: Path, files: list[Path]) -> dict[Path, str]:
    """Return captions by path, from every metadata file of the set; empty where a row has none."""
    captions: dict[Path, str] = {}
    absent: list[str] = []
    twice: list[str] = []
    known, tables = set(files), [path for path in files if path.name in METADATA]
    for table in tables:
        if table.name == METADATA[1] and table.with_name(METADATA[0]) in tables:
            raise DataError(f"{table.parent}: has both {' and '.join(METADATA)}; keep one of them")
        for where, row in _rows(table):
            file_name = row.get("file_name")
            if not isinstance(file_name, str) or not file_name:
                raise DataError(f"{where}: has no `file_name`")
            path = Path(os.path.normpath(table.parent / file_name))
            if path not in known:
                absent.append(file_name)
            elif path in captions:
                twice.append(file_name)
            else:
                captions[path] = _caption(row, where)
    if absent:
        raise DataError(
            f"image set {folder}: its metadata names {len(absent)} absent files: "
            f"{listed(absent)}; remove the rows, or bring the files back"
        )
    if twice:
        raise DataError(
            f"image set {folder}: its metadata names {len(twice)} files more than once: "
            f"{listed(twice)}; keep one row each"
        )
    return captions


def _rows(table: Path) -> Iterator[tuple[str, dict]]:
    """Yield each row of a metadata file with its location for messages."""
    text = _text(table)
    if table.suffix == ".csv":
        try:
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            for row in reader:
                yield f"{table}, line {reader.line_num}", row
        except csv.Error as error:
            raise DataError(f"{table}: is not a CSV table ({error})") from error
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{table}, line {number}"
        try:
            row = json_text.loads(line)
        except json_text.JsonError as error:
            raise DataError(f"{where}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: is a {type(row).__name__}, not an object in braces")
        yield where, row


def _caption(row: dict, where: str) -> str:
    for column in CAPTION_COLUMNS:
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: `{column}` is {value!r}, not a text")
        if value and value.strip():
            return value.strip()
    return ""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
