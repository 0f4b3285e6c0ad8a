"""Parameters by name as one flat vector and back, their gradients, and sums of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Loss = Callable[[], Tensor]
Terms = Callable[[], Tensor]  # parts of several users' losses, [users]


@dataclass(frozen=True, slots=True)
class SplitLoss:
    """A loss as a sum of terms, so that its gradient needs the graph of one term at a time.

    Called, it is the whole sum in one graph (which exact Hessian products need).
    """

    terms: tuple[Loss, ...]

    def __call__(self) -> Tensor:
        return torch.stack([term() for term in self.terms]).sum()


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate all values in float32 or wider, [n]."""
    parts = [tensor.detach().reshape(-1) for tensor in tensors]
    flat = torch.cat(parts)
    return flat if flat.dtype == torch.float64 else flat.float()


def unflatten(vector: Tensor, like: Parameters) -> dict[str, Tensor]:
    """Return views of `vector` in the shapes and under the names of `like`."""
    sizes = [tensor.numel() for tensor in like.values()]
    return {
        name: part.view_as(tensor)
        for (name, tensor), part in zip(like.items(), vector.split(sizes), strict=True)
    }


def snapshot(parameters: Parameters) -> dict[str, Tensor]:
    """Copy the parameters, out of reach of later in-place changes."""
    return {name: tensor.detach().clone() for name, tensor in parameters.items()}


@torch.no_grad()
def assign(parameters: Parameters, values: Parameters) -> None:
    """Write `values` into the parameters in place, bit for bit."""
    for name, tensor in parameters.items():
        tensor.copy_(values[name])


def distance(parameters: Parameters, start: Parameters) -> Tensor:
    """Return the L2 length of the move from `start` over all tensors, a scalar."""
    now = [tensor.detach() for tensor in parameters.values()]
    moves = [m.float() for m in torch._foreach_sub(now, [start[name] for name in parameters])]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(moves)))


def norm_and_clip(parts: list[Tensor], limit: float) -> Tensor:
    """Return the L2 norm over all parts, a scalar; with a `limit`, shorten them to it in place."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts)))
    if limit:
        torch._foreach_mul_(parts, torch.clamp(limit / (norm + 1e-6), max=1.0))
    return norm


def gradient(
    loss: Loss, parameters: Parameters, *, scale: float = 1.0
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the loss, detached, and its gradient; no graph is left.

    `scale` multiplies the loss for the backward pass only, so that small gradients survive
    half precision. A parameter that the loss does not depend on has gradient 0. The terms of a
    `SplitLoss` are differentiated one after the other.
    """
    leaves = list(parameters.values())
    if isinstance(loss, SplitLoss) and len(loss.terms) > 1:
        value, found = _term_by_term(loss.terms, leaves, scale)
    else:
        value = loss()
        scaled = value * scale if scale != 1 else value
        found = torch.autograd.grad(scaled, leaves, allow_unused=True)
    gradients = tuple(
        torch.zeros_like(tensor) if part is None else part
        for part, tensor in zip(found, parameters.values(), strict=True)
    )
    if scale != 1:
        torch._foreach_mul_(list(gradients), 1 / scale)
    return value.detach(), gradients


def gradients(
    terms: Sequence[Terms], users: Sequence[Parameters], *, scale: float = 1.0
) -> list[tuple[Tensor, list[Tensor]]]:
    """Return each user's loss and gradient; no user's loss depends on another's parameters.

    The graph of one term is alive at a time.
    """
    leaves = [tensor for user in users for tensor in user.values()]
    sums = [torch.zeros_like(leaf) for leaf in leaves] if len(terms) > 1 else []
    values = []
    for term in terms:
        value = term()
        found = torch.autograd.grad(value.sum() * scale, leaves, allow_unused=True)
        values.append(value.detach())
        del value
        parts = [
            torch.zeros_like(leaf) if part is None else part
            for leaf, part in zip(leaves, found, strict=True)
        ]
        sums = parts if len(terms) == 1 else torch._foreach_add(sums, parts)
    if scale != 1:
        torch._foreach_mul_(list(sums), 1 / scale)
    ends = torch.stack(values).sum(0)
    rest = iter(sums)
    return [(end, [next(rest) for _ in user]) for end, user in zip(ends, users, strict=True)]


def _term_by_term(
    terms: Sequence[Loss], leaves: list[Tensor], scale: float
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the sum of the terms and its gradients.

    Gradients add up in the leaves' `grad`: a second set would cost as much as the parameters.
    """
    before = [leaf.grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        values = []
        for term in terms:
            value = term()
            values.append(value.detach())
            torch.autograd.backward(value * scale if scale != 1 else value, inputs=leaves)
            del value
        return torch.stack(values).sum(), [leaf.grad for leaf in leaves]
    finally:
        for leaf, old in zip(leaves, before, strict=True):
            leaf.grad = old
