"""Keep a LoRA out of the directions in which the network meets what must stay.

The gradient of a linear layer W with respect to its weight lies in the span of its inputs x. So
fine-tuning on harmless data moves W within the span of harmless inputs, and an update whose rows
are orthogonal to that span is neither felt by those inputs nor undone by such fine-tuning. For each
layer the leading eigenvectors M of Σ xxᵀ over retain samples, which hold a share of its trace, span
the inputs that count; A, whose rows are the update's, is held to their complement:

    A ← A (I − M Mᵀ)   after each step

Source: Aladawi et al., Projected Gradient Unlearning, arXiv:2604.21041, for fine-tuning all
weights of a layer; that A alone is projected is our form of it for a LoRA.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter.apply import AdaptedDenoiser
from ..bilevel.vectors import Parameters
from ..errors import ConfigError
from ..numerics.eigen import positive_eigen
from ..plan.stages import ProjectionConfig
from .feed import Feed

_A = ".lora_A.weight"


@dataclass(frozen=True, slots=True)
class Projection:
    """M of each module: orthonormal columns, [in, k]. Layers that share their input share M."""

    bases: Mapping[str, Tensor]

    @torch.no_grad()
    def apply(self, theta: Parameters) -> None:
        """Project A of every module, in place."""
        for name, basis in self.bases.items():
            rows = theta[name + _A]
            rows.sub_((rows @ basis) @ basis.T)

    @property
    def share(self) -> float:
        """The share of all input directions that is kept out, 0 to 1."""
        sizes = [basis.shape for basis in self.bases.values()]
        return sum(k for _, k in sizes) / sum(width for width, _ in sizes)


def retain_projection(
    denoiser: AdaptedDenoiser, feed: Feed, settings: ProjectionConfig
) -> Projection:
    """Find the projection of θ's layers in the original network's passes on retain samples."""
    batch = feed.plan.retain_batch
    with denoiser.frozen():
        return watched(
            denoiser.modules,
            [feed.retain_pass(number) for number in range(-(-settings.samples // batch))],
            energy=settings.energy,
        )


def watched(
    modules: Mapping[str, Any], passes: Sequence[Callable[[], Any]], *, energy: float
) -> Projection:
    """Find the bases of the inputs of `modules` during `passes`.

    energy: share of the inputs' total square that M holds; 0 to 1. Needs [in, in] float32 for
    each distinct input, on the CPU.
    """
    for name, module in modules.items():
        if module.weight.dim() != 2:
            raise ConfigError(
                f"method project: {name} is a convolution, whose inputs are not projected; leave "
                "`convolution` out of adapter.targets"
            )
    watch = _Watch()
    with ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(watch.of(name))
            stack.callback(handle.remove)
        for once in passes:
            once()
    found: dict[str, Tensor] = {}
    for name, module in modules.items():
        group = watch.groups[name]
        if group not in found:
            found[group] = leading(watch.squares[group], energy).to(module.weight.device)
    return Projection({name: found[watch.groups[name]] for name in modules})


def largest_bases(denoiser: AdaptedDenoiser) -> list[Tensor]:
    """Allocate what a projection holds at most: a whole basis for each distinct input of a layer.

    How much less it is, the inputs' values decide. Q, K and V are given one tensor, and all K and V
    of the cross-attention the same text.
    """
    found: dict[tuple[str, int], Tensor] = {}
    for name, module in denoiser.modules.items():
        width, device = module.in_features, module.weight.device
        text = re.search(denoiser.model.family.text_input, "." + name)
        key = ("text" if text else name.rpartition(".")[0], width)
        if key not in found:
            found[key] = torch.zeros(width, width, device=device)
    return list(found.values())


def leading(square: Tensor, energy: float) -> Tensor:
    """Return the fewest eigenvectors, [n, k], that hold `energy` of a positive matrix's trace."""
    values, vectors = positive_eigen(square.double())
    shares = values.clamp(min=0).flip(0).cumsum(0) / values.clamp(min=0).sum()
    count = int((shares < energy).sum()) + 1
    return vectors.flip(1)[:, :count].float()


class _Watch:
    """Collects Σ xxᵀ of layers' inputs; layers given the same tensor share one sum."""

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}
        self.groups: dict[str, str] = {}
        self._met: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def of(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            given: Tensor = args[0]
            reference, group = self._met.get(id(given), (None, name))
            if reference is not None and reference() is given:
                self.groups[name] = group
                return
            self._met[id(given)] = weakref.ref(given), name
            self.groups[name] = name
            rows = given.detach().reshape(-1, given.shape[-1]).float()
            square = (rows.T @ rows).cpu()
            known = self.squares.get(name)
            self.squares[name] = square if known is None else known.add_(square)

        return hook
