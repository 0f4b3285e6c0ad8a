"""Puts the backend's adapter onto ComfyUI's MODEL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .checks import UNET

if TYPE_CHECKING:
    from torch import Tensor

    from ...backend.adapter.dense import AnyAdapter


# What a LORA_MODEL's tensor changes: the mark of one change, and the weight that it is of.
_CHANGES = {".alpha": ".weight", ".diff": ".weight", ".diff_b": ".bias"}


def lora_model(adapter: AnyAdapter, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Convert an adapter to a LORA_MODEL, in names that ComfyUI reads completely.

    A dense adapter becomes differences of full size. names: as `key_map` returns them.
    """
    import torch

    from ...backend.adapter.dense import DenseAdapter
    from ...backend.adapter.lora import A, B

    tensors: dict[str, Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(adapter, DenseAdapter):
            for name in adapter.parameters:
                module, _, leaf = name.rpartition(".")
                mark = ".diff_b" if leaf == "bias" else ".diff"
                tensors[UNET + names[module] + mark] = adapter.change(name).cpu().clone()
            return tensors
        for module in adapter.modules:
            stem = UNET + names[module]
            tensors[stem + ".lora_down.weight"] = adapter.tensors[module + A].cpu().clone()
            tensors[stem + ".lora_up.weight"] = adapter.tensors[module + B].cpu().clone()
            tensors[stem + ".alpha"] = torch.tensor(float(adapter.alpha))
    return tensors


def with_adapter(model: Any, lora: Mapping[str, Tensor]) -> Any:
    """Clone the MODEL with the LORA_MODEL on it; raise if ComfyUI did not take every module."""
    import comfy.sd

    from ...backend.errors import ExportError

    modules = len(changed(lora))
    patched = comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)[0]
    before = sum(len(patches) for patches in model.patches.values())
    taken = sum(len(patches) for patches in patched.patches.values()) - before
    if taken != modules:
        raise ExportError(
            f"ComfyUI took {taken} of the adapter's {modules} changes: the MODEL is not the one "
            "that was hardened; connect the MODEL that Harden Model was given"
        )
    return patched


def changed(lora: Mapping[str, Tensor]) -> list[str]:
    """Return the weights and biases that a LORA_MODEL changes."""
    return [
        name.removesuffix(mark) + weight
        for name in lora
        for mark, weight in _CHANGES.items()
        if name.endswith(mark)
    ]
