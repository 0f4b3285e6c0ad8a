"""A tracker for tensors without memory that runs a full-size network in seconds.

PyTorch works out shapes on the meta device in Python, at about a millisecond an operation. A
network repeats few shapes often, so the shapes of results are remembered by those of the operands;
nothing is done where an operation only changes values, as there are none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tracker import LiveMemory

_NUMBER = torch.ops.aten._local_scalar_dense.default
_VALUES_ONLY = ("_foreach_", "add_", "mul_", "sub_", "div_", "addcmul_", "addcdiv_", "lerp_",
                "copy_", "zero_", "fill_", "sqrt_", "normal_", "uniform_")  # fmt: skip
Shape = tuple[torch.Size, tuple[int, ...], torch.dtype]


class MetaMemory(LiveMemory):
    """Counts the bytes that meta tensors would take.

    `float(tensor)` gives one half, `int(tensor)` 0 and `bool(tensor)` True, so that code which
    reads values can continue: a loss is finite, a solve contracts.
    """

    def __init__(self, *, block: int = 1) -> None:
        super().__init__("meta", block=block)
        self._kinds: dict[Any, str] = {}
        self._known: dict[Any, Any] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        if kind == "number" and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 0.5 * args[0].is_floating_point()
        if kind == "values" and _is_meta(args[0]):
            return None if isinstance(args[0], (list, tuple)) else args[0]
        if kind != "fresh":
            return func(*args, **kwargs)
        key = (func, _key(args), _key(tuple(kwargs.items())))
        if key in self._known:
            return _remake(self._known[key])
        result = func(*args, **kwargs)
        shapes = _shapes(result)
        if shapes is not None:
            self._known[key] = shapes
        return result


def _kind(func: Any) -> str:
    """`fresh`: all results are new tensors. `values`: only the first operand's values change."""
    schema = func._schema
    name = schema.name.split("::")[1]
    if func is _NUMBER:
        return "number"
    if not any(part.alias_info for part in (*schema.arguments, *schema.returns)):
        return "fresh"
    in_place = name.startswith(_VALUES_ONLY) and name.endswith("_") and schema.is_mutable
    return "values" if in_place else "other"


def _is_meta(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(part.is_meta for part in value)
    return isinstance(value, Tensor) and value.is_meta


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(_key(part) for part in value)
    # 1, 1.0 and True are equal, and mean different types of results.
    return (type(value), value) if isinstance(value, (bool, int, float)) else value


def _shapes(result: Any) -> Any:
    """Describe how to make the result again; None where it is not made of meta tensors alone."""
    if isinstance(result, Tensor):
        whole = result.is_meta and result.storage_offset() == 0
        return (result.shape, result.stride(), result.dtype) if whole else None
    if isinstance(result, (list, tuple)):
        parts = [None if part is None else _shapes(part) for part in result]
        if any(
            part is None and found is not None for part, found in zip(parts, result, strict=True)
        ):
            return None
        return [type(result), parts]
    return None


def _remake(shapes: Any) -> Any:
    if shapes is None:
        return None
    if isinstance(shapes, list):
        kind, parts = shapes
        return kind(_remake(part) for part in parts)
    size, stride, dtype = shapes
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")
