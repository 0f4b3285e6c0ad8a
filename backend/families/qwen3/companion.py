"""Qwen3 as a file of its own beside a denoiser."""

from __future__ import annotations

from functools import partial

from ..base.single_file import PartNames
from ..base.stored import Companion, StoredFile

_WIDTHS = {"0.6B": 1024, "1.7B": 2048, "4B": 2560, "8B": 4096, "14B": 5120, "32B": 5120}


def qwen3_companion(
    names: PartNames,
    size: str,
    usual: tuple[str, ...],
    *,
    text: str,
    denoiser: str,
    layers: int = 1,
) -> Companion:
    """Return the companion that holds Qwen3 of one size.

    usual: see `Companion`. text, denoiser: the components; a file with both is not a companion.
    layers: how many it has at least.
    """
    fits = partial(_fits, names=names, size=size, text=text, denoiser=denoiser, layers=layers)
    return Companion(text, f"text encoder (Qwen3 {size})", usual, ("text_encoders", "clip"), fits)


def _fits(
    file: StoredFile, *, names: PartNames, size: str, text: str, denoiser: str, layers: int
) -> bool:
    """All sizes have the same names, and people keep several: those of other widths do not fit.
    A width that none was published with does, as in tests."""
    prefix = names.prefix(text, file.tensors)
    if prefix is None or names.prefix(denoiser, file.tensors) is not None:
        return False
    width = file.tensors.get(prefix + "embed_tokens.weight")
    others = set(_WIDTHS.values()) - {_WIDTHS[size]}
    last = f"{prefix}layers.{layers - 1}.self_attn.q_norm.weight"
    return width is not None and width.shape[-1] not in others and last in file.tensors
