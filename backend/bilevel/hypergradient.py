"""Gradient of L_harm after one simulated fine-tuning run, with respect to θ.

The run ends at φ*(θ) = argmin_φ L_ft(θ, φ) + ‖φ − φ0‖² / 2γ (its Moreau envelope). With H the
Hessian of L_ft at φ* and g = ∂L_harm/∂φ there, the implicit function theorem gives

    dL_harm/dθ = ∂L_harm/∂θ − H_θφ (I/γ + H_φφ)⁻¹ g

and, where the run moves θ itself (`shared`: φ = θ, φ0 = θ), (I + γH)⁻¹ g. The solver needs
products with H alone. First order leaves the Hessian out: g, or ∂L_harm/∂θ. γ is the plan's,
not fitted to the simulated run: for short runs of plain gradient descent it would be about
learning rate × steps, where the correction vanishes (docs/method.md).
Source: Li et al., arXiv:2507.16302.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DivergenceError
from ..plan.solver import SolverConfig
from .hessian import hessian_product
from .solvers import Solution, solve
from .vectors import Loss, Parameters, flatten, gradient, unflatten


@dataclass(frozen=True, slots=True)
class Hypergradient:
    """The gradient by name, L_harm(θ*), the solve (None: first order), why it was skipped.

    retain_after: L_retain(θ*), where the objective asks for it.
    """

    tensors: dict[str, Tensor]
    harm_after: Tensor
    solution: Solution | None
    skipped: str = ""
    retain_after: Tensor | None = None


def hypergradient(
    harm: Loss,
    fine_tuning: Loss,
    theta: Parameters,
    phi: Parameters,
    solver: SolverConfig,
    *,
    scale: float = 1.0,
    retain: Loss | None = None,
    retain_weight: float = 0.0,
) -> Hypergradient:
    """At φ* as it stands in the weights; `phi` is `theta` itself in the shared simulation.

    Args:
        harm: L_harm on a frozen batch.
        retain, retain_weight: L_retain on a frozen batch, and its weight relative to L_harm's:
            the gradient is then that of L_harm(θ*) + weight · L_retain(θ*).
        fine_tuning: L_ft on a frozen batch, without the proximal term.
        theta, phi: parameters in place.
        solver: method, γ, products; with `on_divergence="skip"` a failed solve gives the
            first-order gradient and says so in `skipped`.
        scale: loss scale of half precision.

    Raises:
        DivergenceError: a failed solve with `on_divergence="stop"`.
    """
    shared = phi is theta
    # θ and φ never share a name's tensor unless they are the same mapping.
    both = dict(theta) if shared else {("θ", n): t for n, t in theta.items()} | {
        ("φ", n): t for n, t in phi.items()
    }  # fmt: skip
    after, gradients = gradient(harm, both, scale=scale)  # type: ignore[arg-type]
    kept = None
    if retain is not None and retain_weight > 0:
        kept, more = gradient(retain, both, scale=scale)  # type: ignore[arg-type]
        torch._foreach_add_(list(gradients), list(more), alpha=retain_weight)
    direct, g = gradients[: len(theta)], gradients if shared else gradients[len(theta) :]
    first_order = dict(zip(theta, direct, strict=True))
    if solver.method == "first_order":
        return Hypergradient(first_order, after, None, "", kept)
    try:
        implicit, solution = _implicit(fine_tuning, theta, phi, flatten(g), solver, scale)
    except DivergenceError as error:
        if solver.on_divergence == "stop":
            raise
        return Hypergradient(first_order, after, None, str(error), kept)
    if shared:
        return Hypergradient(unflatten(implicit, theta), after, solution, "", kept)
    change = unflatten(implicit, theta)
    total = {name: part - change[name].to(part.dtype) for name, part in first_order.items()}
    return Hypergradient(total, after, solution, "", kept)


def _implicit(
    loss: Loss, theta: Parameters, phi: Parameters, g: Tensor, solver: SolverConfig, scale: float
) -> tuple[Tensor, Solution]:
    """(I + γH)⁻¹ g for shared weights; H_θφ (I/γ + H_φφ)⁻¹ g otherwise."""
    options = {"products": solver.products, "epsilon": solver.epsilon, "scale": scale}
    with hessian_product(loss, phi, **options) as product:  # type: ignore[arg-type]
        solution = solve(
            solver.method,
            lambda v: solver.gamma * product(v),
            g,
            iterations=solver.iterations,
            tolerance=solver.tolerance,
        )
    if phi is theta:
        return solution.x, solution
    with hessian_product(loss, phi, theta, **options) as cross:  # type: ignore[arg-type]
        mixed = cross(solver.gamma * solution.x)
    if not bool(torch.isfinite(mixed).all()):
        raise DivergenceError("the mixed Hessian product is not finite: lower solver.gamma")
    return mixed, solution
