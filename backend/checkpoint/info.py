"""A recognised checkpoint as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..families import Family
from ..families.base.distilled import caution, distilled_by
from ..families.base.sources import Source
from ..families.base.stored import Decided, Description, decision_of
from .header import Header

Layout = Literal["ldm", "diffusers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """A checkpoint, recognised but not loaded.

    path: the .safetensors file, or the diffusers folder.
    layout: `ldm` (one file) or `diffusers` (a folder).
    prediction_type: what the denoiser predicts.
    configs: by component and `scheduler`, in diffusers' form.
    prefixes: of the names of each component in the file; empty in a folder.
    resolution: native side in pixels.
    files: the weight files of each component. In the layout `ldm` it is `path`, unless the
        component lies in a file of its own, which an export leaves alone.
    headers: the header of each of these files.
    dtypes: storage types of each component, the most frequent (by bytes) first, e.g. ("F16",).
    bytes: total size of the weight files.
    decided: what the caller decided it to predict (`prediction` of `detect`); empty: the file did.
    distilled: the method by which it seems to have been distilled, and how that was recognised.
    """

    path: Path
    family: Family
    layout: Layout
    prediction_type: str
    configs: dict[str, dict[str, Any]]
    prefixes: dict[str, str]
    resolution: int
    files: dict[str, tuple[Path, ...]] = field(repr=False)
    headers: dict[Path, Header] = field(repr=False)
    dtypes: dict[str, tuple[str, ...]]
    tensor_count: int
    bytes: int
    metadata: dict[str, str] = field(repr=False)
    decided: str = ""
    distilled: str = ""

    @property
    def cautions(self) -> tuple[str, ...]:
        """Return sentences on what the user should know before hardening."""
        found = [caution(self.distilled)] if self.distilled else []
        return (*found, *self.family.recognition.cautions(self.metadata))

    @property
    def title(self) -> str:
        """Return the family for a reader, e.g. `Stable Diffusion 1.x`."""
        return self.family.title

    @property
    def components(self) -> tuple[str, ...]:
        return self.family.components

    @property
    def places(self) -> tuple[Path, ...]:
        """Return the folders in which parts beside the weights, such as tokenizers, may lie."""
        if self.layout == "diffusers":
            return (self.path,)
        return tuple(dict.fromkeys(file.parent for file in self.headers))

    @property
    def export_bytes(self) -> int:
        """Return the bytes that an export writes: companions of a single file stay where they
        are."""
        if self.layout == "diffusers":
            return self.bytes
        header = self.headers[self.path]
        return header.data_start + header.data_bytes

    @property
    def zero_terminal_snr(self) -> bool:
        """Return True if the noise schedule ends in pure noise."""
        return bool(self.configs["scheduler"].get("rescale_betas_zero_snr"))

    @property
    def decision(self) -> Decided:
        """Return what it predicts as a decision for another file; see `DECISIONS`."""
        return decision_of(self.prediction_type, self.zero_terminal_snr)

    def names(self, component: str) -> frozenset[str]:
        """Return the names of the tensors in the files that hold a component."""
        return frozenset(n for file in self.files[component] for n in self.headers[file].tensors)

    def sources(self, component: str) -> dict[str, Source]:
        """Return the locations of a component's tensors, by their names in the network."""
        return self.family.tensors.sources(component, self)


def describe(
    path: Path,
    family: Family,
    layout: Layout,
    found: Description,
    files: dict[str, tuple[Path, ...]],
    headers: dict[Path, Header],
    decided: str = "",
) -> CheckpointInfo:
    """Combine the family's findings and the headers."""
    metadata: dict[str, str] = {}
    for file, header in headers.items():  # the denoiser's file comes first, and wins
        if layout == "diffusers" or file == path:  # a companion's say nothing of the denoiser
            metadata = header.metadata | metadata
    return CheckpointInfo(
        path=path,
        family=family,
        layout=layout,
        prediction_type=found.prediction,
        configs=found.configs,
        prefixes=found.prefixes,
        resolution=found.resolution,
        files=files,
        headers=headers,
        dtypes={
            name: dtypes_of([headers[file] for file in files[name]], found.prefixes[name])
            for name in files
        },
        tensor_count=sum(len(header.tensors) for header in headers.values()),
        bytes=sum(header.data_start + header.data_bytes for header in headers.values()),
        metadata=metadata,
        decided=decided,
        distilled=found.distilled
        or distilled_by(
            (path.stem if layout == "ldm" else path.name, *found.names),
            metadata,
            str(found.configs["scheduler"].get("_class_name", "")),
        ),
    )


def dtypes_of(headers: list[Header], prefix: str = "") -> tuple[str, ...]:
    """Return storage types of tensors whose names begin with `prefix`, largest share first."""
    sizes: dict[str, int] = {}
    for header in headers:
        for name, entry in header.tensors.items():
            if name.startswith(prefix) and "position_ids" not in name:
                sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    return tuple(sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype)))
