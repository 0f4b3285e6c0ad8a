"""Single files of a transformer: all in one, or the denoiser beside its companions.

A family states its names and readers as one `SingleFiles`; how companions are found and read, and
in which order metadata and checks apply, is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from .overrides import Allowed, apply_overrides
from .refuse import quantised_kind
from .shapes import Shapes
from .stored import Companion, Description, StoredFile

Configs = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class PartNames:
    """How names of a component's tensors begin in files, and which of them give it away.

    prefixes: by component, the likeliest first. marks: by component, sets of names without prefix;
    a file holds the component if it has all names of any set behind one prefix.
    """

    prefixes: Mapping[str, tuple[str, ...]]
    marks: Mapping[str, tuple[tuple[str, ...], ...]]

    def prefix(self, component: str, names: Container[str]) -> str | None:
        """Return what the names of a component begin with; None where a file does not hold it."""
        return next(
            (
                prefix
                for prefix in self.prefixes[component]
                for marks in self.marks[component]
                if all(prefix + mark in names for mark in marks)
            ),
            None,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A component of the described file itself: what its names begin with, and its config."""

    prefix: str
    config: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFiles:
    """How single files of one family are read.

    companions: the components that may lie in files of their own. config: (component, shapes) to
    the config of one of them. published: the published configs. overridable: fields that metadata
    may set. check: (file named in errors, configs), refuses parts that do not belong together.
    side: pixels, where no VAE says it.
    """

    names: PartNames
    companions: tuple[Companion, ...]
    config: Callable[[str, Shapes], dict[str, Any]]
    published: Callable[[str], dict[str, Any]]
    overridable: Allowed
    check: Callable[[str, Configs], None]
    vae: str
    side: int

    def describe(
        self, file: StoredFile, own: Mapping[str, Part], *, distilled: str = ""
    ) -> Description:
        """Read the companions' configs; a CheckpointError says what is wrong.

        own: parts of the file that the family has read already. distilled: see `Description`.
        """
        configs: Configs = {name: part.config for name, part in own.items()}
        prefixes, files = {name: part.prefix for name, part in own.items()}, {}
        for companion in self.companions:
            name, holder = companion.component, file
            if self.names.prefix(name, file.tensors) is None:
                if file.alone:
                    continue
                holder = _beside(file, companion)
                assert holder.path is not None
                files[name] = holder.path
            found = prefixes[name] = self.names.prefix(name, holder.tensors) or ""
            configs[name] = self.config(name, shapes_of(holder, found))
            if holder is not file:
                apply_overrides(holder.name, configs, holder.metadata, self.overridable)
        configs["scheduler"] = self.published("scheduler")
        if all(companion.component in configs for companion in self.companions):
            apply_overrides(file.name, configs, file.metadata, self.overridable)
            self.check(file.name, configs)
        return Description(
            configs=configs,
            prefixes=prefixes,
            prediction="flow",
            resolution=configs.get(self.vae, {}).get("sample_size", self.side),
            files=files,
            distilled=distilled,
        )


def shapes_of(file: StoredFile, prefix: str) -> Shapes:
    """Return the shapes of the component whose names begin with `prefix`."""
    return Shapes(file.name, {name: each.shape for name, each in file.tensors.items()}, prefix)


def refuse_unusable(file: StoredFile, title: str) -> None:
    """Raise for quantised weights, and for a caller's word on what a flow model predicts."""
    if other := quantised_kind(file.tensors):
        raise CheckpointError(other.sentence(file.name))
    if file.decided:
        raise CheckpointError(
            f"{file.name} predicts a velocity, like every {title}: leave `prediction` empty"
        )


def from_folder(file: StoredFile, index: str, author: str) -> CheckpointError:
    """Return the refusal of a file out of a diffusers folder, which has diffusers' names.

    index: the file that such a folder has. author: of the names that single files have.
    """
    return CheckpointError(
        f"{file.name} is the denoiser of a diffusers folder: give the folder that holds {index}, "
        f"or the file in the names of {author} and ComfyUI"
    )


def _beside(file: StoredFile, companion: Companion) -> StoredFile:
    if file.beside is None:
        raise CheckpointError(f"{file.name} has no {companion.what}: give it with its companions")
    return file.beside(companion)
