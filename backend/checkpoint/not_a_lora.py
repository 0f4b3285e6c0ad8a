"""Recognises a file that was given as a LoRA and is none, and the base that a LoRA was made for.

By header alone and without torch, so that a host can ask before a job starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..adapter.lora_file import other_kind, sort_names
from ..families import Family
from ..families.registry import bases_of_lora
from .detect import is_claimed, unsupported
from .header import Header


def why_not_a_lora(path: Path, header: Header) -> str:
    """Return why a file is not a LoRA; empty if it is one, for whatever model."""
    if not header.tensors:
        return f"{path.name} holds no tensors: it is not a LoRA; fetch it again"
    if sort_names(header.tensors).groups:
        return ""
    return f"{path.name} {_what_else(path, header)}"


def why_other_base(path: Path, header: Header, family: Family) -> str:
    """Say that a LoRA was surely made for another family; empty where it may fit."""
    families, other = base_of(header)
    if may_fit(families, other, family):
        return ""
    return f"{path.name}: {looks_like(families, other, family)}"


def base_of(header: Header) -> tuple[tuple[Family, ...], str]:
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    return bases_of_lora(shapes, header.metadata)


def may_fit(families: tuple[Family, ...], other: str, family: Family) -> bool:
    return not other and (not families or family in families)


def looks_like(families: Sequence[Family], other: str, family: Family) -> str:
    title = other or " or ".join(each.title for each in families)
    return (
        f"it looks like a LoRA for {title}, but the model is {family.title}: give one for this base"
    )


def _what_else(path: Path, header: Header) -> str:
    """Describe a file without a single LoRA tensor."""
    if is_claimed(path, header):
        return (
            "is a whole checkpoint, not a LoRA: give it as the other checkpoint of a merge instead"
        )
    if kind := other_kind(header.tensors):
        return f"is of another kind ({kind}), which is not supported: give a LoRA, LoHa or LoKr"
    other = unsupported(header)
    what = other.what.removesuffix(", not a checkpoint")
    if other.kind == "unknown":
        what = f"no LoRA of a known kind (its first tensor is {min(header.tensors)!r})"
    return f"is {what}: give a LoRA, LoHa, LoKr or DoRA as .safetensors"
