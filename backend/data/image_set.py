"""A folder of images with captions, as trainers keep them.

Captions come from, in this order:

    metadata.jsonl / metadata.csv   in a folder (Hugging Face imagefolder): `file_name`, relative
                                    to it, and `text`, `caption` or `prompt`
    picture.txt / picture.caption   beside picture.png (kohya); its first line that is not empty
    ImageSet.caption                for images that have none

Subfolders belong to the set; names that begin with a dot do not. Nothing is guessed: images
without a caption, metadata that names absent files and duplicates are errors that list them all.
Files that are neither images that Pillow reads nor their captions are listed as left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..plan.images import ImageSet
from ..text.regular_file import is_special
from ..text.walk import walk_once
from .captions import find_sidecar, is_table, listed, sidecar_caption, table_captions
from .file_names import FileNames
from .pixels import BROKEN, is_picture, open_image


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image of a set. `name` is its path within the set's folder, with forward slashes."""

    path: Path
    name: str
    caption: str


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The images of a folder, and the names of the files in it that are not used."""

    images: tuple[CaptionedImage, ...]
    left_out: tuple[str, ...]

    def note(self, folder: str) -> str:
        """Return a sentence on what is left out; empty if that is nothing."""
        count = len(self.left_out)
        if not count:
            return ""
        return (
            f"image set {folder}: {count} file{'s are' if count > 1 else ' is'} left out (hidden, "
            f"or neither a picture that Pillow reads nor a caption of one): {listed(self.left_out)}"
        )


def read_image_set(image_set: ImageSet) -> tuple[CaptionedImage, ...]:
    """List the images of a folder in the order of their names; no pixels are read."""
    return read_image_folder(image_set).images


def read_image_folder(image_set: ImageSet) -> ImageFolder:
    """List the images of a folder, as `read_image_set`, and what else lies in it."""
    folder = Path(image_set.folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"image set {folder}: no such folder")
    files, hidden = _files(folder)
    names = FileNames(folder, files)
    tables = [path for path in files if is_table(path)]
    captions = table_captions(folder, tables, names)
    images = [path for path in files if is_picture(path)]
    if not images:
        raise DataError(
            f"image set {folder}: no images in it (files with a suffix that Pillow reads)"
        )
    stems = {names.name_of(path).rpartition(".")[0] for path in images}
    found, missing, used = [], [], {*tables, *images}
    for path in images:
        name = names.name_of(path)
        sidecar = find_sidecar(name, names, stems)
        if sidecar is not None:
            used.add(sidecar)
        caption = captions.get(path) or (sidecar_caption(sidecar) if sidecar else "")
        caption = caption or image_set.caption.strip()
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
    left_out = [names.name_of(path) for path in files if path not in used]
    return ImageFolder(tuple(found), tuple(sorted([*left_out, *hidden])))


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


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """Find all files, in linked folders too, each folder once, as links may loop. Returns the
    files in order, and the names of hidden ones and of pipes; hidden folders are not entered."""
    files, hidden = [], []
    for here, folders, names in walk_once(folder):
        base = Path(here).relative_to(folder)
        dotted = [name for name in names if name.startswith(".")]
        dotted += [name + "/" for name in folders if name.startswith(".")]
        hidden += [(base / name).as_posix() + "/" * name.endswith("/") for name in dotted]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        plain = [Path(here, name) for name in names if not name.startswith(".")]
        files += [path for path in plain if not is_special(path)]
        hidden += [(base / path.name).as_posix() for path in plain if is_special(path)]
    return sorted(files), hidden
