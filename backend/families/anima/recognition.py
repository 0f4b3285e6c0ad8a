"""Tells Anima from other models, by names and shapes alone."""

from __future__ import annotations

from ..base.file_recognition import FileRecognition, Reader
from ..base.stored import StoredFile
from .config import DENOISER
from .file import NAMES, describe_denoiser, describe_file, in_diffusers_names
from .folder import describe_folder, is_anima
from .lora import claims_lora
from .names import TELLING


def claims_file(file: StoredFile) -> bool:
    """True for all of Cosmos Predict2, to refuse others by name."""
    return NAMES.prefix(DENOISER, file.tensors) is not None or in_diffusers_names(file.tensors)


RECOGNITION = FileRecognition(
    file=Reader(claims_file, describe_file),
    folder=Reader(is_anima, describe_folder),
    rate_lora=claims_lora,
    telling=TELLING,
    read_denoiser=describe_denoiser,
)
