"""Tells Z-Image from other models, by names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.family import LoraTensors
from ..base.shapes import Shapes
from ..base.stored import Description, StoredFile, StoredFolder
from .config import DENOISER
from .file import describe_denoiser, describe_file, prefix_of
from .folder import describe_folder, is_z_image
from .lora import claims_lora
from .names import FUSED


class Recognition:
    """The `Recognition` of Z-Image. It claims its variants, to refuse them by name."""

    def claims_file(self, file: StoredFile) -> bool:
        return prefix_of(DENOISER, file.tensors) is not None

    def describe_file(self, file: StoredFile) -> Description:
        return describe_file(file)

    def claims_folder(self, folder: StoredFolder) -> bool:
        return is_z_image(folder)

    def describe_folder(self, folder: StoredFolder) -> Description:
        return describe_folder(folder)

    def cautions(self, metadata: Mapping[str, str]) -> tuple[str, ...]:
        return ()

    def claims_denoiser(self, shapes: Shapes) -> bool:
        return all(name in shapes for name in FUSED)

    def describe_denoiser(self, shapes: Shapes) -> dict[str, Any]:
        return describe_denoiser(shapes, fused=True)

    def claims_lora(self, file: LoraTensors) -> int:
        return claims_lora(file)
