"""Finds the files of components that people keep apart from the denoiser.

ComfyUI's users have the denoiser, the text encoder and the VAE in folders of their own
(`models/diffusion_models`, `text_encoders`, `vae`). A component is taken from the file that the
user names, else from the only fitting one beside the denoiser or in those folders. Only headers are
read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import CheckpointError
from ..families.base.refuse import quantised_kind
from ..families.base.shapes import reading_shapes
from ..families.base.stored import Companion, StoredFile
from .header import Header, read_header
from .stored import stored_file

_ABOVE = 3  # folders above the denoiser's in which the usual folders are looked for
_MANY = 500  # files that are opened at most
_FORGE_NEO = {"text_encoders": "text_encoder", "vae": "VAE"}  # its folders; ours are ComfyUI's


class Companions:
    """Companions of one file. headers: of those that were found. folders: further ones in which
    they are looked for."""

    def __init__(self, path: Path, named: Mapping[str, str], folders: Sequence[Path] = ()) -> None:
        self._path, self._named, self._folders = path, named, folders
        self.headers: dict[Path, Header] = {}
        self._passed_over: dict[Path, str] = {}  # what is wrong with files of another kind

    def find(self, wanted: Companion) -> StoredFile:
        """Return the companion's file; a CheckpointError says how to give it."""
        if named := self._named.get(wanted.component, "").strip():
            return self._taken(Path(named), wanted)
        fitting = list(self._fitting(wanted))
        whole = [file for file in fitting if not quantised_kind(file.tensors)]
        for stem in wanted.usual:
            named_so = [file for file in whole if Path(file.name).stem.lower() == stem]
            if len(named_so) == 1:
                return named_so[0]
        if len(whole) == 1:
            return whole[0]
        raise CheckpointError(self._why(wanted, whole, fitting))

    def _taken(self, path: Path, wanted: Companion) -> StoredFile:
        file = self._opened(path)
        if not _fits(file, wanted):
            raise CheckpointError(
                f"{path.name} does not hold the {wanted.what} of {self._path.name}: give its own "
                f"file, e.g. {wanted.usual[0]}.safetensors"
            )
        if other := quantised_kind(file.tensors):
            raise CheckpointError(other.sentence(path.name))
        return file

    def _opened(self, path: Path) -> StoredFile:
        if path not in self.headers:
            self.headers[path] = read_header(path)
        return stored_file(path, self.headers[path])

    def _fitting(self, wanted: Companion) -> Iterator[StoredFile]:
        for path in self._paths(wanted):
            try:
                file = self._opened(path)
                if _fits(file, wanted):
                    yield file
                    continue
                why = f"{path.name} has that name and holds another model"
            except CheckpointError as error:  # damaged, or of another format: somebody else's file
                why = str(error)
            self._passed_over[path] = why

    def _paths(self, wanted: Companion) -> list[Path]:
        here = self._path.absolute().parent
        folders = [here]
        for above in (here, *here.parents[:_ABOVE]):
            folders += [above / name for name in wanted.folders]
            folders += [above / _FORGE_NEO[name] for name in wanted.folders if name in _FORGE_NEO]
        folders += self._folders
        found = [
            path
            for folder in folders
            if folder.is_dir()
            for path in sorted(
                folder.glob("*.safetensors" if folder == here else "**/*.safetensors")
            )
        ]
        others = [path for path in found if path.resolve() != self._path.resolve()]
        kept: dict[object, Path] = {}
        for path in others:
            kept.setdefault(_identity(path), path)
        return list(kept.values())[:_MANY]

    def _why(self, wanted: Companion, whole: list[StoredFile], fitting: list[StoredFile]) -> str:
        name, field = self._path.name, wanted.component
        flag = "--" + field.replace("_", "-")
        if len(whole) > 1:
            shown = ", ".join(file.name for file in whole[:4])
            return (
                f"{name} has no {wanted.what} of its own, and several files hold one ({shown}): "
                f"name one in `{field}` ({flag})"
            )
        if fitting:
            return (
                f"{name} has no {wanted.what} of its own, and {fitting[0].name} is quantised: "
                "fetch the bf16 version of it"
            )
        for path, why in self._passed_over.items():
            if path.stem.lower() in wanted.usual:
                return (
                    f"{name} has no {wanted.what} of its own, and {why}: put the original there, "
                    f"or name another file in `{field}` ({flag})"
                )
        return (
            f"{name} has no {wanted.what}: put its file ({wanted.usual[0]}.safetensors) beside it "
            f"or into {' or '.join(wanted.folders)}, or name it in `{field}` ({flag})"
        )


def _identity(path: Path) -> object:
    """Return what is the same for a file that is found twice: VAE and vae may be one folder."""
    try:
        status = path.stat()
    except OSError:  # a link to a file that is gone
        return path
    return status.st_dev, status.st_ino


def _fits(file: StoredFile, wanted: Companion) -> bool:
    with reading_shapes(file.name):
        return wanted.fits(file)
