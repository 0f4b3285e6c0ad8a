"""Hessian-vector products of a loss, exactly or by finite differences of its gradient.

Exact: one gradient with its graph kept, then one backward pass per product. Fused attention
kernels (flash, memory-efficient, cuDNN, xformers) have no second derivative, so PyTorch's
math kernel is forced. Finite differences: H v ≈ ‖v‖ (∇L(w + εv̂) − ∇L(w − εv̂)) / 2ε, two
first-order passes each, so that fused kernels and gradient checkpointing stay usable; the
error is O(ε²) plus rounding over ε. Weights are moved in place and restored bit for bit.

The loss must be the same function at each call (frozen batch, noise and timesteps); otherwise the
operator is not symmetric and the solve is meaningless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..numerics.torch_compat import math_attention
from ..plan.solver import HessianProducts
from .vectors import Loss, Parameters, assign, flatten, gradient, snapshot, unflatten


@contextmanager
def hessian_product(
    loss: Loss,
    parameters: Parameters,
    outputs: Parameters | None = None,
    *,
    products: HessianProducts = "finite_difference",
    epsilon: float = 3e-3,
    scale: float = 1.0,
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield v ↦ ∂/∂s ∇_outputs loss(parameters + s v) at s = 0, on flat vectors.

    With `outputs` left out it is the Hessian of the parameters; otherwise the mixed block
    H_(outputs, parameters). `epsilon` is the L2 length of the weight move, `scale` the loss
    scale of half precision.
    """
    wanted = parameters if outputs is None else outputs
    if products == "finite_difference":
        yield lambda v: _difference(loss, parameters, wanted, v, epsilon, scale)
        return
    with math_attention():
        first = torch.autograd.grad(loss(), list(parameters.values()), create_graph=True)

        def exact(v: Tensor) -> Tensor:
            direction = list(unflatten(v, parameters).values())
            rows = torch.autograd.grad(
                first,
                list(wanted.values()),
                grad_outputs=[d.to(f.dtype) for d, f in zip(direction, first, strict=True)],
                retain_graph=True,
                allow_unused=True,
            )
            return flatten(
                [
                    torch.zeros_like(tensor) if row is None else row
                    for row, tensor in zip(rows, wanted.values(), strict=True)
                ]
            )

        yield exact


def _difference(
    loss: Loss, parameters: Parameters, wanted: Parameters, v: Tensor, epsilon: float, scale: float
) -> Tensor:
    length = torch.linalg.vector_norm(v)
    move = unflatten(v * (epsilon / torch.clamp(length, min=torch.finfo(v.dtype).tiny)), parameters)
    start = snapshot(parameters)
    ends = []
    try:
        for sign in (1.0, -1.0):
            assign(parameters, start)
            with torch.no_grad():
                for name, tensor in parameters.items():
                    tensor.add_(move[name].to(tensor.dtype), alpha=sign)
            ends.append(flatten(gradient(loss, wanted, scale=scale)[1]))
    finally:
        assign(parameters, start)
    return (ends[0] - ends[1]) * (length / (2 * epsilon))
