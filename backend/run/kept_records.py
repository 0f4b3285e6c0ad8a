"""The records of a run within its state, from which `steps.jsonl` is made again."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import RunError
from . import json_lines

Records = list[dict[str, Any]]


def pack(records: Records) -> Tensor:
    """Compress records to a tensor of bytes.

    Without their seconds, which would make the state's bytes differ from run to run.
    """
    lines = b"".join(map(json_lines.line_of, _timeless(records)))
    return torch.frombuffer(bytearray(zlib.compress(lines, 1)), dtype=torch.uint8)


def kept_records(file: Path, step: int, packed: Tensor | None) -> Records:
    """Return the records up to the saved step: the file's if the state agrees with them.

    packed: what `pack` made of them; None in a state that an older version wrote.
    """
    try:
        found = json_lines.read(file)
    except RunError:
        if packed is None:
            raise
        found = []
    found = up_to(found, step)
    if packed is None:
        if len(found) < step:
            raise RunError(
                f"{file} has the records of {len(found)} of {step} steps: put a copy of it back, "
                "or begin anew in another folder"
            )
        return found
    kept = json_lines.parse_lines(zlib.decompress(packed.numpy().tobytes()), "the saved state")
    return found if _timeless(found) == kept else kept


def up_to(records: Records, step: int) -> Records:
    """Return the records of the steps up to one; a record without a step is none of them."""
    return [r for r in records if type(r.get("step")) is int and r["step"] <= step]


def _timeless(records: Records) -> Records:
    return [{**r, "seconds": 0.0} if "seconds" in r else dict(r) for r in records]
