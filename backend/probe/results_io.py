"""What a rank other than the first has in place of the probe's folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..parallel.ranks import Ranks
from .folder import ProbeFolder, picture_name, write_png
from .results import Look

Letter = tuple[dict[str, Any], dict[str, Tensor]]  # a look, and its pictures as PNG files


class Outbox:
    """Sends each look, with the pictures saved before it, to the first rank."""

    path = Path()
    cache = None

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._pictures: dict[str, Tensor] = {}

    def save_picture(self, image: Tensor, *names: str) -> str:
        """As `ProbeFolder.save_picture`; on the first rank's disk once the look is sent."""
        relative = picture_name(*names)
        file = io.BytesIO()
        write_png(image, file)
        self._pictures[relative] = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        return relative

    def add(self, look: Look) -> None:
        self._ranks.send((look.to_json(), self._pictures))
        self._pictures = {}


def opened(letter: Letter, folder: ProbeFolder | None) -> Look:
    """The look in a letter; the pictures are kept, where anything is."""
    record, pictures = letter
    if folder is not None:
        for relative, data in pictures.items():
            (folder.path / relative).write_bytes(bytes(data.numpy()))
    return Look.from_json(record)
