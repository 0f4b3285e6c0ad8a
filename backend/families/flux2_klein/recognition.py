"""Tells FLUX.2 klein 4B from other models, by names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.family import LoraTensors
from ..base.shapes import Shapes
from ..base.stored import Description, StoredFile, StoredFolder
from .config import DENOISER, denoiser_config
from .file import describe_file, in_diffusers_names, prefix_of
from .folder import describe_folder, is_flux2
from .lora import claims_lora
from .names import TELLING
from .refusals import refuse_relatives


class Recognition:
    """The `Recognition` of FLUX.2 klein. It claims all of FLUX.2, to refuse the others by name."""

    def claims_file(self, file: StoredFile) -> bool:
        return prefix_of(DENOISER, file.tensors) is not None or in_diffusers_names(file.tensors)

    def describe_file(self, file: StoredFile) -> Description:
        return describe_file(file)

    def claims_folder(self, folder: StoredFolder) -> bool:
        return is_flux2(folder)

    def describe_folder(self, folder: StoredFolder) -> Description:
        return describe_folder(folder)

    def cautions(self, metadata: Mapping[str, str]) -> tuple[str, ...]:
        return ()

    def claims_denoiser(self, shapes: Shapes) -> bool:
        return TELLING in shapes

    def describe_denoiser(self, shapes: Shapes) -> dict[str, Any]:
        config = denoiser_config(shapes, "weight")
        refuse_relatives(shapes.file, config)
        return config

    def claims_lora(self, file: LoraTensors) -> int:
        return claims_lora(file)
