"""Serialises values with tensors, bit for bit, to send them between ranks.

    8 bytes   length of the structure
    JSON      the value; a tensor in it is its type and shape
    bytes     the tensors' own, one after the other

Only known dataclasses and JSON's own types: nothing received is executed, and the name under
which a host has imported the package does not matter. An object that occurs twice stays one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def pack(value: Any) -> Tensor:
    """Return `value` as bytes on the CPU: uint8, [n]."""
    tensors: list[Tensor] = []
    text = json.dumps(_plain(value, tensors, {})).encode()
    head = len(text).to_bytes(8, "big") + text
    return torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8), *tensors])


def unpack(blob: Tensor, classes: Sequence[type] = (), device: torch.device | str = "cpu") -> Any:
    """Return the value of `pack`. classes: dataclasses that may occur. device: of its tensors."""
    length = int.from_bytes(bytes(blob[:8].tolist()), "big")
    structure = json.loads(bytes(blob[8 : 8 + length].numpy()))
    known = {cls.__name__: cls for cls in classes}
    return _Reader(blob[8 + length :], known, device).value(structure)


def _plain(value: Any, tensors: list[Tensor], seen: dict[int, int]) -> Any:
    """Return `value` as plain JSON; append the bytes of its tensors to `tensors`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        tensors.append(plain.reshape(-1).view(torch.uint8))
        return {"tensor": [str(plain.dtype).removeprefix("torch."), list(plain.shape)]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_plain(part, tensors, seen) for part in value]}
    if isinstance(value, Mapping):
        return {"dict": [[key, _plain(part, tensors, seen)] for key, part in value.items()]}
    if is_dataclass(value) and not isinstance(value, type):
        if id(value) in seen:
            return {"again": seen[id(value)]}
        parts = {f.name: _plain(getattr(value, f.name), tensors, seen) for f in fields(value)}
        seen[id(value)] = len(seen)
        return {"of": type(value).__name__, "fields": parts}
    raise TypeError(f"a {type(value).__name__} cannot be sent to another rank")


class _Reader:
    def __init__(
        self, data: Tensor, classes: Mapping[str, type], device: torch.device | str
    ) -> None:
        self.data, self.classes, self.device = data, classes, device
        self.place = 0
        self.seen: list[Any] = []

    def value(self, plain: Any) -> Any:
        if not isinstance(plain, dict):
            return plain
        if "tensor" in plain:
            return self._tensor(*plain["tensor"])
        if "dict" in plain:
            return {key: self.value(part) for key, part in plain["dict"]}
        if "again" in plain:
            return self.seen[plain["again"]]
        if "of" in plain:
            parts = {name: self.value(part) for name, part in plain["fields"].items()}
            self.seen.append(self.classes[plain["of"]](**parts))
            return self.seen[-1]
        kind, parts = next(iter(plain.items()))
        found = [self.value(part) for part in parts]
        return tuple(found) if kind == "tuple" else found

    def _tensor(self, name: str, shape: list[int]) -> Tensor:
        dtype = getattr(torch, name)
        size = math.prod(shape) * dtype.itemsize
        part = self.data[self.place : self.place + size].clone()  # a clone is aligned
        self.place += size
        return part.view(dtype).reshape(shape).to(self.device)
