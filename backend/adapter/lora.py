"""The adapter as a value: LoRA tensors by name, their rank and strength.

Each target module of the denoiser with weight W gets ΔW = (alpha / rank) · B·A, with A =
`<module>.lora_A.weight` and B = `<module>.lora_B.weight`: [rank, in] and [out, rank] for a
linear layer, [rank, in, k, k] and [out, rank, 1, 1] for a convolution. Module names are those of
diffusers' UNet2DConditionModel. Source: Hu et al., arXiv:2106.09685; names as in PEFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

A, B = ".lora_A.weight", ".lora_B.weight"
WEIGHT = ".weight"


@dataclass(frozen=True)
class Adapter:
    """θ. `tensors` maps `<module>.lora_A.weight` and `<module>.lora_B.weight` to float32."""

    tensors: dict[str, Tensor]
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Return the names of the adapted modules, in the order of the tensors."""
        return tuple(name.removesuffix(A) for name in self.tensors if name.endswith(A))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of the denoiser's tensors that it changes."""
        return tuple(module + WEIGHT for module in self.modules)

    def delta(self, module: str) -> Tensor:
        """Return ΔW of one module in float32, in the shape of its weight."""
        return self.scale * low_rank_product(
            self.tensors[module + A].float(), self.tensors[module + B].float()
        )

    def change(self, parameter: str) -> Tensor:
        """Return ΔW of one of the denoiser's tensors, `<module>.weight`."""
        return self.delta(parameter.removesuffix(WEIGHT))

    def shape(self, parameter: str) -> tuple[int, ...]:
        """Return the shape of a tensor that it changes."""
        module = parameter.removesuffix(WEIGHT)
        return (self.tensors[module + B].shape[0], *self.tensors[module + A].shape[1:])


def low_rank_product(a: Tensor, b: Tensor) -> Tensor:
    """Return B·A in the shape of the adapted weight.

    a: [rank, in] or [rank, in, k, k]; b: [out, rank] or [out, rank, 1, 1];
    returns [out, in] or [out, in, k, k].
    """
    if a.dim() == 2:
        return b @ a
    return torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
