"""Recognition of a family by functions: what its folder of code has to say, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .family import LoraTensors
from .shapes import Shapes
from .stored import Description, StoredFile, StoredFolder

Stored = TypeVar("Stored", StoredFile, StoredFolder)


@dataclass(frozen=True, slots=True)
class Reader(Generic[Stored]):
    """One form of a model on disk. claims: tells if it is the family's; describe: its configs."""

    claims: Callable[[Stored], bool]
    describe: Callable[[Stored], Description]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecognition:
    """The `Recognition` of a family whose headers hold nothing to caution about.

    file, folder: read single files and diffusers folders. rate_lora: see
    `Recognition.claims_lora`. telling: the tensors that a denoiser in a host's memory has if it is
    the family's. read_denoiser: reads its config; a CheckpointError refuses relatives.
    """

    file: Reader[StoredFile]
    folder: Reader[StoredFolder]
    rate_lora: Callable[[LoraTensors], int]
    telling: tuple[str, ...]
    read_denoiser: Callable[[Shapes], dict[str, Any]]

    def claims_file(self, file: StoredFile) -> bool:
        return self.file.claims(file)

    def describe_file(self, file: StoredFile) -> Description:
        return self.file.describe(file)

    def claims_folder(self, folder: StoredFolder) -> bool:
        return self.folder.claims(folder)

    def describe_folder(self, folder: StoredFolder) -> Description:
        return self.folder.describe(folder)

    def cautions(self, metadata: Mapping[str, str]) -> tuple[str, ...]:
        return ()

    def claims_denoiser(self, shapes: Shapes) -> bool:
        return all(name in shapes for name in self.telling)

    def describe_denoiser(self, shapes: Shapes) -> dict[str, Any]:
        return self.read_denoiser(shapes)

    def claims_lora(self, file: LoraTensors) -> int:
        return self.rate_lora(file)
