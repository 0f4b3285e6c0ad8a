"""Identifies the weights of what is connected, without building a network."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(model: Any, clip: Any = None, vae: Any = None) -> str:
    """Hash the weights, patches included, to 40 hexadecimal digits."""
    import torch

    found = hashlib.sha256()
    patchers = [model, getattr(clip, "patcher", None), getattr(vae, "patcher", None)]
    with torch.inference_mode(False), torch.no_grad():
        for number, patcher in enumerate(patchers):
            for name, entries in sorted((patcher.get_key_patches() if patcher else {}).items()):
                found.update(f"{number} {name} ".encode())
                _add(found, entries[0][0] if isinstance(entries[0], tuple) else entries[0])
                for patch in entries[1:]:
                    _add(found, patch)
    layer = getattr(clip, "layer_idx", None)
    found.update(json.dumps(layer if layer is None else int(layer)).encode())
    return found.hexdigest()[:40]


def _add(found: Any, value: Any) -> None:
    """Add a patch or weight, however nested, to a hash: bits of tensors, and numbers."""
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().contiguous().reshape(-1)
        size = tensor.element_size()
        bits = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
        picks = torch.linspace(0, max(len(bits) - 1, 0), min(64, len(bits)), dtype=torch.double)
        values = bits[picks.long().to(bits.device)].tolist()
        total = int(bits.sum(dtype=torch.int64))
        found.update(json.dumps([list(value.shape), str(value.dtype), values, total]).encode())
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(found, item)
    elif isinstance(value, (str, int, float, bool, type(None))):
        found.update(repr(value).encode())
    elif hasattr(value, "weights"):  # one of ComfyUI's weight adapters: a LoRA, LoHa, ...
        found.update(type(value).__name__.encode())
        _add(found, value.weights)
