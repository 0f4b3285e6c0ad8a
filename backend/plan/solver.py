"""How the linear solve behind the implicit gradient is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .bounds import choice, within

SolverMethod = Literal["first_order", "richardson", "cg", "minres"]
HessianProducts = Literal["finite_difference", "exact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverConfig:
    """The linear solve behind the implicit gradient, (I + γH) x = g.

    iterations: Hessian-vector products at most. gamma: γ, the proximal radius. epsilon: length
    of the weight move of a finite difference (absolute; 1e-3 to 1e-2 holds for LoRA tensors).
    batch: samples in the frozen batch whose Hessian is used; 0 means the inner loop's batch.
    on_divergence: `skip` counts and shows the step and uses the first-order gradient, `stop`
    ends the run with the state before it saved.
    """

    method: SolverMethod = "first_order"
    iterations: int = 5
    gamma: float = 1.0
    products: HessianProducts = "finite_difference"
    epsilon: float = 3e-3
    tolerance: float = 1e-4
    batch: int = 0
    on_divergence: Literal["skip", "stop"] = "skip"

    def __post_init__(self) -> None:
        choice("solver", "method", self.method, ("first_order", "richardson", "cg", "minres"))
        choice("solver", "products", self.products, ("finite_difference", "exact"))
        choice("solver", "on_divergence", self.on_divergence, ("skip", "stop"))
        within("solver", "iterations", self.iterations, 1, 1000)
        within("solver", "gamma", self.gamma, 0, 1e6, above=True)
        within("solver", "epsilon", self.epsilon, 0, 10, above=True)
        within("solver", "tolerance", self.tolerance, 0, 1)
        within("solver", "batch", self.batch, 0, 4096)
