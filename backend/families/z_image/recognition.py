"""Tells Z-Image from other models, by names and shapes alone."""

from __future__ import annotations

from functools import partial

from ..base.file_recognition import FileRecognition, Reader
from ..base.stored import StoredFile
from .config import DENOISER
from .file import NAMES, describe_denoiser, describe_file
from .folder import describe_folder, is_z_image
from .lora import claims_lora
from .names import FUSED


def claims_file(file: StoredFile) -> bool:
    """True for variants too, to refuse them by name."""
    return NAMES.prefix(DENOISER, file.tensors) is not None


RECOGNITION = FileRecognition(
    file=Reader(claims_file, describe_file),
    folder=Reader(is_z_image, describe_folder),
    rate_lora=claims_lora,
    telling=FUSED,
    read_denoiser=partial(describe_denoiser, fused=True),
)
