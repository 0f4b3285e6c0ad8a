"""Tells FLUX.2 klein 4B from other models, by names and shapes alone."""

from __future__ import annotations

from typing import Any

from ..base.file_recognition import FileRecognition, Reader
from ..base.shapes import Shapes
from ..base.stored import StoredFile
from .config import DENOISER, denoiser_config
from .file import NAMES, describe_file, in_diffusers_names
from .folder import describe_folder, is_flux2
from .lora import claims_lora
from .names import TELLING
from .refusals import refuse_relatives


def claims_file(file: StoredFile) -> bool:
    """True for all of FLUX.2, to refuse the others by name."""
    return NAMES.prefix(DENOISER, file.tensors) is not None or in_diffusers_names(file.tensors)


def denoiser_in_memory(shapes: Shapes) -> dict[str, Any]:
    """Return the config of a host's denoiser; a CheckpointError refuses other FLUX.2."""
    config = denoiser_config(shapes, "weight")
    refuse_relatives(shapes.file, config)
    return config


RECOGNITION = FileRecognition(
    file=Reader(claims_file, describe_file),
    folder=Reader(is_flux2, describe_folder),
    rate_lora=claims_lora,
    telling=(TELLING,),
    read_denoiser=denoiser_in_memory,
)
