"""The interface of a host, and the check of paths that a visitor enters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from ...backend.errors import ConfigError
from ...backend.plan.file_names import file_name_parts

ALONE = "resalign ui"  # the name of the tab without a host
DEMO = "ResAlign demo"  # the embedded checkpoint, in the list of checkpoints
FOLDERS_VARIABLE = "RESALIGN_FOLDERS"  # set by the owner of the machine: further folders


class Host(Protocol):
    """A1111, Forge, one of their forks, or the tab without a host."""

    @property
    def name(self) -> str:
        """Return the host's name for messages."""
        ...

    @property
    def every_family(self) -> bool:
        """Return whether it loads FLUX.2 klein, Anima and Z-Image too."""
        ...

    def checkpoints(self) -> list[tuple[str, Path]]:
        """List (label, file) of each checkpoint that can be hardened; labels are unique."""
        ...

    def model_parts(self) -> list[tuple[str, Path]]:
        """List (label, file) of each file that may hold a text encoder or a VAE."""
        ...

    def loras(self) -> list[tuple[str, Path]]: ...

    def checkpoint_folder(self) -> Path:
        """Return the folder for exported checkpoints."""
        ...

    def lora_folder(self) -> Path: ...

    def further_folders(self) -> list[Path]:
        """Return other folders from which the host lists models."""
        ...

    def output_folder(self) -> Path:
        """Return the folder in whose `resalign` runs, probes and reports are stored."""
        ...

    def remote(self) -> bool:
        """Return whether other machines are served too."""
        ...

    def worker_python(self) -> str:
        """Return the worker's interpreter; a ResAlignError says what is missing and what to do."""
        ...

    def missing(self) -> str:
        """Return why there is no worker and what to do; empty if there is one."""
        ...

    def build_worker(self) -> Iterator[str]:
        """Build or repair the worker's environment; yield a line per step. Takes a minute."""
        ...

    def sees_gpu(self) -> bool:
        """Return whether a job on the device `auto` is to be expected on a GPU."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the GPU: wait for the host's own work, and give its memory back afterwards."""
        ...

    def refresh_checkpoints(self) -> None:
        """Scan for checkpoints again."""
        ...

    def exported(self, source: Path, output: Path) -> None:
        """Handle a new checkpoint: copy the files that belong beside it, renew the lists."""
        ...

    def setting(self, name: str) -> Any:
        """Return the value of one of `SETTINGS` from the host's settings page."""
        ...


# name: (default, label); shown on the host's settings page
SETTINGS: dict[str, tuple[Any, str]] = {
    "device": ("auto", "Device of a job: auto, cpu, cuda, cuda:1, mps"),
    "preview_every": (10, "Steps between two previews; 0 for none"),
    "show_pictures": (False, "Show pictures of the concept without blur"),
}


def work_folder(host: Host) -> Path:
    return host.output_folder() / "resalign"


def runs_folder(host: Host) -> Path:
    return work_folder(host) / "runs"


def probes_folder(host: Host) -> Path:
    return work_folder(host) / "probes"


def roots(host: Host) -> list[Path]:
    """Return the folders that remote visitors may name: the host's and those the owner added."""
    named = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
    own = [host.checkpoint_folder(), host.lora_folder(), host.output_folder()]
    return [path.resolve() for path in (*own, *(Path(text) for text in named if text.strip()))]


def inside(path: Path, folders: Iterable[Path]) -> bool:
    """Return whether a path lies in one of the folders, after resolving links."""
    real = path.resolve()
    return any(real == folder or real.is_relative_to(folder) for folder in folders)


def dangling(path: Path) -> bool:
    """Return whether a path is a link to a file that is gone."""
    return path.is_symlink() and not path.exists()


def typed_folder(text: str, what: str, host: Host) -> str:
    """Check a folder that was typed into the page; empty stays empty.

    Remote visitors may name only folders of the host: otherwise they could have any folder of
    this machine read.
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
            raise ConfigError(f"{what}: give the absolute path of the folder, not {text[:200]!r}")
        if not path.is_dir():
            raise ConfigError(f"{what}: folder {text[:200]!r} does not exist: check the path")
    except (OSError, RuntimeError):  # too long, a loop of links, ~ of nobody
        raise ConfigError(f"{what}: {text[:200]!r} cannot be a folder: check the path") from None
    return str(path)


def file_name(text: str, what: str) -> str:
    """Check the name of a new file or folder, which may name subfolders: `sub/name`."""
    return "/".join(file_name_parts(text, what))


def chosen(label: Any, choices: list[tuple[str, Path]], what: str) -> Path:
    """Return the path of a label; raise a ConfigError for labels that the list does not have."""
    for known, path in choices:
        if known == label:
            return path
    if not label:
        raise ConfigError(f"{what}: choose one from the list")
    raise ConfigError(
        f"{what}: {str(label)[:200]!r} is not in the list: refresh it and choose again"
    )
