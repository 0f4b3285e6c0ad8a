"""ResAlign on one page: an outer step of Algorithm 2 of Li et al., arXiv:2507.16302.

    F(θ) = L_harm(θ) + λ · mean_j [L_harm(θ*_j) − L_harm(θ)] + μ · L_retain(θ)
           + ν · mean_j L_retain(θ*_j)

θ is the adapter. From it, J simulated users fine-tune φ (θ itself, or weights of their own)
on L_ft and end at θ*_j. The gradient through a run is implicit: (I + γH)⁻¹ ∂F/∂θ*_j for φ = θ, with
H the Hessian of L_ft (Algorithm 1; `bilevel.hypergradient`). By loss, F is

    (1 − λ) · L_harm(θ) + μ · L_retain(θ) + 1/J · Σ_j [λ · L_harm(θ*_j) + ν · L_retain(θ*_j)]

Each term is differentiated by itself, so that one graph is alive at a time. ν is ours (0 in the
paper); docs/method.md lists what else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..bilevel.hypergradient import LossAfter, hypergradient
from ..bilevel.inner_loop import inner_loop
from ..bilevel.simulate import SimulatedUser
from ..bilevel.vectors import Loss, Parameters, gradient
from ..plan.fine_tune import FineTuneConfig
from ..plan.solver import SolverConfig
from .terms import Compute, Group, Task, Term, in_order, term_after


def simulate_user(
    θ: Parameters,
    φ: Parameters,
    L_ft: Callable[[int], Loss],
    after: LossAfter,
    user: FineTuneConfig,
    steps: int,
    solver: SolverConfig,
    *,
    γ: float | None = None,
    scale: float = 1.0,
) -> SimulatedUser:
    """Train φ in place until θ*, then differentiate through the run; the caller restores φ.

    L_ft gives the loss of inner step 1 to `steps`, and as step 0 the one whose Hessian is solved
    with. With γ the user's loss has the proximal term ‖φ − φ0‖² / 2γ.
    """
    run = inner_loop(φ, L_ft, user, steps, gamma=γ, scale=scale)
    return SimulatedUser(user, run, hypergradient(after, L_ft(0), θ, φ, solver, scale=scale))


def outer_gradient(
    θ: Parameters,
    L_harm: Loss,
    L_retain: Loss,
    users: Sequence[Group],
    *,
    λ: float,
    μ: float,
    ν: float,
    J: int,
    scale: float = 1.0,
    compute: Compute = in_order,
) -> tuple[dict[str, Tensor], dict[str, Term]]:
    """Return ∇F(θ) by parameter, and its terms by name, without their gradients.

    users: all J users of the step. scale: loss scale of half precision.
    """

    def at_θ(name: str, weight: float, loss: Loss) -> list[Term]:
        return [Term(name, weight, *gradient(loss, θ, scale=scale))]

    def at_θ_star(group: Group) -> list[Term]:
        found = group.simulate(LossAfter(L_harm, L_retain, λ, ν))
        return [term_after(user, user.result.weight / J) for user in found]

    tasks = [
        Task(1.0, lambda: at_θ("harm", 1 - λ, L_harm)),
        Task(1.0, lambda: at_θ("retain", μ, L_retain)),
        *(Task(group.cost, lambda group=group: at_θ_star(group)) for group in users),
    ]
    total = {name: torch.zeros_like(tensor) for name, tensor in θ.items()}
    terms: dict[str, Term] = {}
    for found in compute(tasks):
        for term in found:
            torch._foreach_add_(list(total.values()), list(term.gradient), alpha=term.weight)
            terms[term.name] = replace(term, gradient=())
    return total, terms


def descend(
    θ: Parameters, total: Parameters, optimiser: torch.optim.Optimizer, *, learning_rate: float
) -> None:
    """Update θ in place along the gradient `total`."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    for tensor, part in zip(θ.values(), total.values(), strict=True):
        tensor.grad = part
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
