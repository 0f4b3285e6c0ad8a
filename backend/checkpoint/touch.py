"""Which tensors of a checkpoint an adapter changes, and their new bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..adapter.lora import A, Adapter, B
from ..adapter.merge import Merged, merged_weight
from ..errors import ExportError
from ..numerics.torch_compat import FNUZ
from .detect import CheckpointInfo
from .header import Header, TensorEntry
from .keys import unet_ldm_names
from .stream import Change

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, **FNUZ,
}  # fmt: skip
_MANY = 0.25  # share of the changed tensors that may lose their update without a warning


def touched_names(info: CheckpointInfo, adapter: Adapter) -> dict[str, str]:
    """Tensor name, as the checkpoint has it, to the adapter's module that changes it."""
    names = unet_ldm_names(info.configs["unet"]) if info.layout == "ldm" else None
    missing = [m for m in adapter.modules if names is not None and m + ".weight" not in names]
    if missing:
        raise _unknown(info.path.name, missing, len(adapter.modules))
    return {
        (names[module + ".weight"] if names else module + ".weight"): module
        for module in adapter.modules
    }


def check_touched(
    file: str, headers: Iterable[Header], names: Mapping[str, str], adapter: Adapter
) -> None:
    """Raise unless every touched tensor is there, in a type and shape that can be changed."""
    tensors = {name: entry for header in headers for name, entry in header.tensors.items()}
    missing = [module for name, module in names.items() if name not in tensors]
    if missing:
        raise _unknown(file, missing, len(names))
    for name, module in names.items():
        entry = tensors[name]
        a, b = adapter.tensors[module + A], adapter.tensors[module + B]
        if entry.shape != (b.shape[0], *a.shape[1:]):
            raise ExportError(
                f"{file}: {name} has shape {list(entry.shape)}, but the adapter's {module} changes "
                f"{[b.shape[0], *a.shape[1:]]}: it was made for another model"
            )
        if entry.dtype not in DTYPES:
            raise ExportError(
                f"{file}: {name} is stored as {entry.dtype}, a quantised type that cannot be "
                "changed in place: export from the fp16 or fp32 original"
            )


@dataclass(slots=True)
class Tally:
    """What the changes amounted to, gathered while they are made."""

    touched: int = 0
    largest_change: float = 0.0
    largest_change_in: str = ""
    lost: int = 0
    change_squared: float = 0.0
    error_squared: float = 0.0

    def change(self, name: str, module: str, adapter: Adapter) -> Change:
        """The change of one tensor, for `stream.rewrite`."""

        def apply(entry: TensorEntry, old: bytearray) -> Any:
            weight = torch.frombuffer(old, dtype=DTYPES[entry.dtype]).view(entry.shape)
            merged = merged_weight(weight, adapter.delta(module), name)
            self._add(name, merged)
            return merged.weight.contiguous().reshape(-1).view(torch.uint8).numpy().data

        return apply

    @property
    def rounding_error(self) -> float:
        """‖what was added − ΔW‖ / ‖ΔW‖ over all changed tensors: 0 exact, 1 nothing arrived."""
        return (self.error_squared / self.change_squared) ** 0.5 if self.change_squared else 0.0

    def warnings(self) -> tuple[str, ...]:
        if self.touched and not self.change_squared:
            return ("the adapter changes nothing: all its updates are zero",)
        if self.lost > _MANY * self.touched:
            return (
                f"{self.lost} of {self.touched} changed tensors lost more than half of their "
                "update to rounding: their type is too coarse for it; harden the fp16 or fp32 "
                "version instead, and probe the written file, not the adapter",
            )
        return ()

    def _add(self, name: str, merged: Merged) -> None:
        self.touched += 1
        self.lost += merged.lost
        self.change_squared += merged.change_norm**2
        self.error_squared += merged.error_norm**2
        if merged.relative_change > self.largest_change:
            self.largest_change, self.largest_change_in = merged.relative_change, name


def _unknown(file: str, missing: list[str], modules: int) -> ExportError:
    return ExportError(
        f"{file} has no tensor for {len(missing)} of the adapter's {modules} modules (first: "
        f"{missing[0]}): the adapter was made for another model"
    )
