"""Which kernels train: those of attention, and how tensors lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .bounds import choice

Attention = Literal["auto", "sdpa", "xformers"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConfig:
    """`auto` measures on a GPU, at the start of a run, and keeps to the quickest; on a CPU it is
    `sdpa` and `contiguous`, so that a plan gives the same bytes each time.

    attention: PyTorch's scaled-dot-product attention, or xformers' memory-efficient attention.
    memory_format: of the denoiser's convolutions.
    """

    attention: Attention = "auto"
    memory_format: MemoryFormat = "auto"

    def __post_init__(self) -> None:
        choice("kernels", "attention", self.attention, ("auto", "sdpa", "xformers"))
        choice(
            "kernels", "memory_format", self.memory_format,
            ("auto", "contiguous", "channels_last"),
        )  # fmt: skip
