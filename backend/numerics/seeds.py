"""Randomness by name: each draw has its own generator, made from the seed and what it is for.

Nothing is carried from one draw to the next, so a run resumed at any step sees the same
numbers as one never interrupted, and the same on every device (draws happen on the CPU).
"""

from __future__ import annotations

import hashlib
import json

import torch


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the use that `names` describe, e.g. (0, "forget", step)."""
    text = json.dumps([seed, *names])
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(value)
