"""Tells Anima from other models, by names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.family import LoraTensors
from ..base.shapes import Shapes
from ..base.stored import Description, StoredFile, StoredFolder
from .config import DENOISER
from .file import describe_denoiser, describe_file, in_diffusers_names, prefix_of
from .folder import describe_folder, is_anima
from .lora import claims_lora
from .names import TELLING


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
        return all(name in shapes for name in TELLING)

    def describe_denoiser(self, shapes: Shapes) -> dict[str, Any]:
        return describe_denoiser(shapes)

    def claims_lora(self, file: LoraTensors) -> int:
        return claims_lora(file)
