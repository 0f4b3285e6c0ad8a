"""Probe folder of a rank other than the first; only the first rank writes to the disk.

`RemoteFolder` sends evaluations and pictures to the first rank; `store_received` writes them there.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..parallel.ranks import Ranks
from .folder import ProbeFolder, picture_name, write_png
from .results import Evaluation

Message = tuple[dict[str, Any], dict[str, Tensor]]  # an evaluation, and its pictures as PNG files


class RemoteFolder:
    """Sends each evaluation, with the pictures saved before it, to the first rank."""

    path = Path()
    cache = None

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._pictures: dict[str, Tensor] = {}

    def save_picture(self, image: Tensor, *names: str) -> str:
        """Keep one image until its evaluation is sent; return its path in the probe's folder."""
        relative = picture_name(*names)
        file = io.BytesIO()
        write_png(image, file)
        self._pictures[relative] = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        return relative

    def add(self, evaluation: Evaluation) -> None:
        self._ranks.send((evaluation.to_json(), self._pictures))
        self._pictures = {}


def store_received(message: Message, folder: ProbeFolder | None) -> Evaluation:
    """Write a message's evaluation and pictures to the folder, if any; return the evaluation."""
    record, pictures = message
    evaluation = Evaluation.from_json(record)
    if folder is not None:
        for relative, data in pictures.items():
            (folder.path / relative).write_bytes(bytes(data.numpy()))
        folder.add(evaluation)
    return evaluation
