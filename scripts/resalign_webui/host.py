"""What the tab needs of whoever serves it, and which paths a person may name through it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from ...backend.errors import ConfigError

DEMO = "ResAlign demo"  # the embedded checkpoint, in the list of checkpoints
FOLDERS_VARIABLE = "RESALIGN_FOLDERS"  # set by the owner of the machine: further folders


class Host(Protocol):
    """A1111, Forge, or the tab on its own."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    def checkpoints(self) -> list[tuple[str, Path]]:
        """(label, file) of each checkpoint that can be hardened; labels differ."""
        ...

    def loras(self) -> list[tuple[str, Path]]: ...

    def checkpoint_folder(self) -> Path:
        """Where an exported checkpoint goes."""
        ...

    def lora_folder(self) -> Path: ...

    def output_folder(self) -> Path:
        """Where runs, probes and reports are kept, below `resalign`."""
        ...

    def remote(self) -> bool:
        """Is it served to other machines than this one?"""
        ...

    def worker_python(self) -> str:
        """The interpreter of the worker; a ResAlignError says what is missing and the way out."""
        ...

    def missing(self) -> str:
        """Why there is no worker, and the way out; empty where there is one."""
        ...

    def mend(self) -> Iterator[str]:
        """Make or repair the worker's environment; a line for each step. Takes a minute."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """The GPU for us alone: waits for the host's own work, and gives its memory back after."""
        ...

    def refresh_checkpoints(self) -> None:
        """Look for checkpoints again."""
        ...

    def exported(self, source: Path, output: Path) -> None:
        """A checkpoint was written: what belongs beside it goes there, and lists are renewed."""
        ...

    def setting(self, name: str) -> Any:
        """One of `SETTINGS`, as the host's settings page has it."""
        ...


# name: (default, label); shown on the host's settings page
SETTINGS: dict[str, tuple[Any, str]] = {
    "device": ("auto", "Device of a job: auto, cpu, cuda, cuda:1, mps"),
    "preview_every": (10, "Steps between two previews; 0 draws none"),
    "show_pictures": (False, "Show pictures of the concept without blur"),
}


def work_folder(host: Host) -> Path:
    return host.output_folder() / "resalign"


def runs_folder(host: Host) -> Path:
    return work_folder(host) / "runs"


def probes_folder(host: Host) -> Path:
    return work_folder(host) / "probes"


def roots(host: Host) -> list[Path]:
    """Folders that a person at another machine may name: the host's own, and the owner's."""
    named = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
    own = [host.checkpoint_folder(), host.lora_folder(), host.output_folder()]
    return [path.resolve() for path in (*own, *(Path(text) for text in named if text.strip()))]


def inside(path: Path, folders: Iterable[Path]) -> bool:
    """Links are followed: what counts is where the file is."""
    real = path.resolve()
    return any(real == folder or real.is_relative_to(folder) for folder in folders)


def typed_folder(text: str, what: str, host: Host) -> str:
    """A folder that was typed into the page; empty stays empty.

    Over a network only folders of the host are allowed: otherwise any visitor could have any
    folder of this machine read.
    """
    text = text.strip().strip('"')
    if not text:
        return ""
    try:
        path = Path(text).expanduser()
        if host.remote() and not inside(path, roots(host)):
            raise ConfigError(
                f"{what}: this page is served to other machines, so only folders inside those of "
                f"{host.name} can be named; its owner can add some in the variable "
                f"{FOLDERS_VARIABLE}"
            )
        if not path.is_absolute():
            raise ConfigError(f"{what}: give the whole path of the folder, not {text[:200]!r}")
        if not path.is_dir():
            raise ConfigError(f"{what}: there is no folder {text[:200]!r}: check the path")
    except (OSError, RuntimeError):  # too long, a loop of links, ~ of nobody
        raise ConfigError(f"{what}: {text[:200]!r} cannot be a folder: check the path") from None
    return str(path)


def file_name(text: str, what: str) -> str:
    """A name for a new file or folder, which may have subfolders: `sub/name`."""
    name = text.strip().removesuffix(".safetensors")
    parts = re.split(r"[\\/]", name)
    bad = not all(parts) or ".." in parts or re.search(r'[<>:"|?*\x00-\x1f]', name)
    if bad or len(name) > 120 or any(part != part.strip(" .") for part in parts):
        raise ConfigError(f"{what}: {text!r} is no name for a file; use letters, digits, - and _")
    return "/".join(parts)


def chosen(label: Any, choices: list[tuple[str, Path]], what: str) -> Path:
    """The path behind a label of a list; anything that the list does not have is refused."""
    for known, path in choices:
        if known == label:
            return path
    if not label:
        raise ConfigError(f"{what}: choose one of the list")
    raise ConfigError(
        f"{what}: {str(label)[:200]!r} is not in the list: refresh it and choose again"
    )
