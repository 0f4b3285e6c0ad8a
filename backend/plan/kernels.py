"""The numbers and kernels that train: precision, attention, and how tensors lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .checks import check_fields
from .document import document
from .field import Choices, Help

Precision = Literal["fp32", "bf16", "fp16"]
AutoPrecision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    Choices(
        auto="bf16 on a GPU that has it, fp16 on an older one with tensor cores, fp32 elsewhere "
        "and for Hessian products by finite differences",
        fp32="the most exact",
        bf16="half the memory of the denoiser",
        fp16="half the memory of the denoiser",
    ),
]
Attention = Annotated[
    Literal["auto", "sdpa", "xformers"],
    Choices(
        auto="on a GPU the quicker of the two, measured at the start; on a CPU sdpa",
        sdpa="PyTorch's scaled dot product attention",
        xformers="xformers' memory-efficient attention",
    ),
]
MemoryFormat = Annotated[
    Literal["auto", "contiguous", "channels_last"],
    Choices(
        auto="on a GPU the quicker of the two, measured at the start; on a CPU contiguous",
        contiguous="channels first, PyTorch's default",
        channels_last="channels last",
    ),
]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConfig:
    """Kernels of the denoiser; they change the speed and the last bits of a result, nothing else.

    `auto` measures on a GPU at the start of a run and keeps the quickest; on a CPU it is `sdpa` and
    `contiguous`, so that a plan gives the same bytes each time.
    """

    attention: Annotated[Attention, Help("Implementation of attention.")] = "auto"
    memory_format: Annotated[MemoryFormat, Help("Layout of the convolutions' tensors.")] = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "kernels")
