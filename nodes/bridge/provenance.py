"""Proves what a MODEL is from its tensors, before a file or a report calls it hardened.

A MODEL is the hardened one of a run if the last patch of each adapted weight is the one that
ComfyUI makes of the run's adapter, and everything below those patches is what the run hardened.
That some patch is there proves nothing: any LoRA may lie over the same modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .adapter import changed, with_adapter
from .checks import UNET
from .identity import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

_MARK = "resalign"  # key of the patcher's attachment; its clones keep it


def weights_of(model: Any, clip: Any) -> dict[str, str]:
    """Return fingerprints of the MODEL and of the CLIP's weights, for the run's folder."""
    return {"model": fingerprint(model), "clip": fingerprint(clip.patcher)}


def without_adapter(model: Any, lora: Mapping[str, Tensor]) -> Any:
    """Clone the MODEL without the LORA_MODEL, if that is the last change of its weights.

    Returns None if a patch is missing, has other tensors or another strength, or lies below
    another one.
    """
    bare = model.clone()
    keys = changed(lora)
    for key in keys:
        if not bare.patches.get(key):
            return None
        bare.patches[key] = list(bare.patches[key])[:-1]
        if not bare.patches[key]:
            del bare.patches[key]
    again = with_adapter(bare, lora)
    if all(_equal(again.patches[key][-1], model.patches[key][-1]) for key in keys):
        return bare
    return None


def mark(patched: Any, lora: Mapping[str, Tensor], weights: str) -> None:
    """Note on a MODEL which LORA_MODEL was put on which weights; `is_hardened` checks the note."""
    if hasattr(patched, "set_attachments"):
        patched.set_attachments(_MARK, (dict(lora), weights))


def is_hardened(model: Any) -> bool:
    """Return whether the MODEL is one that Harden Model returned, with nothing changed since."""
    noted = model.get_attachment(_MARK) if hasattr(model, "get_attachment") else None
    if not noted:
        return False
    lora, weights = noted
    bare = without_adapter(model, lora)
    return bare is not None and fingerprint(bare) == weights


def is_same(one: Any, other: Any) -> bool:
    """Return whether two MODELs have the same weights, patches included."""
    return one is other or fingerprint(one) == fingerprint(other)


def module_weights(model: Any, modules: Iterable[str]) -> dict[str, Tensor]:
    """Return `<module>.weight` of some modules with their patches."""
    from ...backend.families.base.sources import read_part
    from .model import merged_weight, places_of

    places = places_of(model)
    wanted = {name + ".weight": places[name + ".weight"] for name in modules}
    return {
        name: read_part(merged_weight(model, UNET + source.name), source)
        for name, source in wanted.items()
    }


def base_matrices(model: Any) -> dict[str, Tensor]:
    """Return the weights of two dimensions or more, by module, without the MODEL's patches."""
    from ...backend.families.base.sources import read_part
    from .model import places_of

    held = model.get_key_patches(UNET)
    weights = {}
    for name, source in places_of(model).items():
        module, _, leaf = name.rpartition(".")
        entries = held.get(UNET + source.name)
        if leaf == "weight" and entries and entries[0][0].dim() >= 2:
            weight, convert = entries[0]
            weights[module] = read_part(convert(weight), source)
    return weights


def _equal(one: Any, other: Any) -> bool:
    """Return whether two patches are the same, however nested: tensors bit for bit."""
    import torch

    if one is other:
        return True
    if type(one) is type(other) and hasattr(one, "weights"):  # a weight adapter of ComfyUI's
        return _equal(one.weights, other.weights)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype
        return same and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return isinstance(one, (str, int, float, bool, type(None))) and one == other
