"""Tells Anima from other models, by names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError
from ..base.family import LoraTensors
from ..base.shapes import Shapes
from ..base.stored import Description, StoredFile, StoredFolder
from .config import DENOISER
from .file import describe_file, in_diffusers_names, prefix_of
from .folder import describe_folder, is_anima
from .lora import claims_lora


class Recognition:
    """The `Recognition` of Anima. It claims all of Cosmos Predict2, to refuse others by name."""

    def claims_file(self, file: StoredFile) -> bool:
        return prefix_of(DENOISER, file.tensors) is not None or in_diffusers_names(file.tensors)

    def describe_file(self, file: StoredFile) -> Description:
        return describe_file(file)

    def claims_folder(self, folder: StoredFolder) -> bool:
        return is_anima(folder)

    def describe_folder(self, folder: StoredFolder) -> Description:
        return describe_folder(folder)

    def cautions(self, metadata: Mapping[str, str]) -> tuple[str, ...]:
        return ()

    def claims_denoiser(self, shapes: Shapes) -> bool:
        return False  # hosts' models in memory are not read

    def describe_denoiser(self, shapes: Shapes) -> dict[str, Any]:
        raise CheckpointError(f"{shapes.file}: Anima is hardened from its files")

    def claims_lora(self, file: LoraTensors) -> int:
        return claims_lora(file)
