"""Gradient, with respect to θ, of what the objective takes after one simulated fine-tuning run.

The run ends at φ*(θ) = argmin_φ L_ft(θ, φ) + ‖φ − φ0‖² / 2γ (its Moreau envelope). With H the
Hessian of L_ft at φ*, F the objective's loss after fine-tuning and g = ∂F/∂φ there, the implicit
function theorem gives

    dF/dθ = ∂F/∂θ − H_θφ (I/γ + H_φφ)⁻¹ g

and, where the run moves θ itself (`shared`: φ = θ, φ0 = θ), (I + γH)⁻¹ g. The solver needs only
products with H. First order leaves the Hessian out: g, or ∂F/∂θ. γ is the plan's, not fitted to the
simulated run: for short runs of plain gradient descent it would be about learning rate × steps,
where the correction vanishes (docs/method.md).
Source: Li et al., arXiv:2507.16302.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import DivergenceError
from ..plan.solver import SolverConfig
from .hessian import hessian_product
from .solvers import Solution, solve
from .vectors import Loss, Parameters, flatten, gradient, unflatten


@dataclass(frozen=True, slots=True)
class LossAfter:
    """λ · L_harm + ν · L_retain on frozen batches: what the objective takes at θ*.

    ν = 0, the paper's objective, never evaluates L_retain.
    """

    harm: Loss
    retain: Loss | None = None
    resilience_weight: float = 1.0  # λ
    retain_weight: float = 0.0  # ν

    def gradient(
        self, parameters: Parameters, *, scale: float
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Return L_harm, L_retain (None without ν) and the gradient in units of λ.

        The factor λ stays outside, so that a solve does not depend on it: its finite differences
        and its tolerance see ∇L_harm as it is.
        """
        harm, gradients = gradient(self.harm, parameters, scale=scale)
        if self.retain is None or self.retain_weight <= 0:
            return harm, None, gradients
        retain, more = gradient(self.retain, parameters, scale=scale)
        share = self.retain_weight / self.resilience_weight
        torch._foreach_add_(list(gradients), list(more), alpha=share)
        return harm, retain, gradients


@dataclass(frozen=True, slots=True)
class Hypergradient:
    """d(λ · L_harm + ν · L_retain)(θ*)/dθ, as `weight` times `tensors`, with both losses at θ*.

    tensors: by name of θ, in memory of their own. weight: λ. retain_after: None where ν = 0.
    solution: figures of the solve without its vector; None for first order. skipped: why a solve
    failed and the first-order gradient stands in for it, or empty.
    """

    tensors: dict[str, Tensor]
    weight: float
    harm_after: Tensor
    retain_after: Tensor | None = None
    solution: Solution | None = None
    skipped: str = ""


def hypergradient(
    after: LossAfter,
    fine_tuning: Loss,
    theta: Parameters,
    phi: Parameters,
    solver: SolverConfig,
    *,
    scale: float = 1.0,
) -> Hypergradient:
    """Differentiate `after` through the run that ended at the weights as they stand.

    Args:
        fine_tuning: L_ft on a frozen batch, without the proximal term.
        theta, phi: parameters in place; `phi` is `theta` itself in the shared simulation.
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
    harm, retain, gradients = after.gradient(both, scale=scale)  # type: ignore[arg-type]
    direct, g = gradients[: len(theta)], gradients if shared else gradients[len(theta) :]
    tensors, solution, skipped = dict(zip(theta, direct, strict=True)), None, ""
    if solver.method != "first_order":
        try:
            implicit, solution = _implicit(fine_tuning, theta, phi, flatten(g), solver, scale)
        except DivergenceError as error:
            if solver.on_divergence == "stop":
                raise
            skipped = str(error)
        else:
            change = unflatten(implicit, theta)
            tensors = change if shared else {
                name: part - change[name].to(part.dtype) for name, part in tensors.items()
            }  # fmt: skip
            # What was solved for is in the gradient: only the figures are kept.
            solution = replace(solution, x=solution.x.new_empty(0))
    # The gradients may be views of, or computed from, weights about to be put back.
    own = {name: part.detach().clone() for name, part in tensors.items()}
    return Hypergradient(own, after.resilience_weight, harm, retain, solution, skipped)


def differentiates_twice(solver: SolverConfig) -> bool:
    """True where the solve needs second derivatives, which fused attention kernels do not have."""
    return solver.method != "first_order" and solver.products == "exact"


def _implicit(
    loss: Loss, theta: Parameters, phi: Parameters, g: Tensor, solver: SolverConfig, scale: float
) -> tuple[Tensor, Solution]:
    """Return (I + γH)⁻¹ g for shared weights, H_θφ (I/γ + H_φφ)⁻¹ g otherwise, and the solve."""
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
