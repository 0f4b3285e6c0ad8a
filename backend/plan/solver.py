"""The linear solve behind the implicit gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .checks import check_fields
from .document import document
from .field import Choices, Help, Range

SolverMethod = Annotated[
    Literal["first_order", "richardson", "cg", "minres"],
    Choices(
        first_order="no Hessian",
        richardson="Richardson iteration, as published",
        cg="conjugate gradients",
        minres="minimal residual",
    ),
]
HessianProducts = Annotated[
    Literal["finite_difference", "exact"],
    Choices(
        finite_difference="two gradients each, with any attention kernel",
        exact="double backward, which needs more memory",
    ),
]
OnDivergence = Annotated[
    Literal["skip", "stop"],
    Choices(
        skip="count it, show it, and use the first-order gradient for this step",
        stop="end the run with the state before the step saved",
    ),
]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class SolverConfig:
    """The linear solve behind the implicit gradient, (I + γH) x = g."""

    method: Annotated[
        SolverMethod, Help("How the implicit gradient is solved for.", label="Solver")
    ] = "first_order"
    iterations: Annotated[
        int, Range(1, 1000), Help("Hessian-vector products in one solve, at most.")
    ] = 5
    gamma: Annotated[
        float,
        Range(0, 1e6, above=True),
        Help(
            "γ: how far simulated users may move from their start (the proximal radius). Lower it "
            "if solves diverge.",
            label="γ, proximal radius",
        ),
    ] = 1.0
    products: Annotated[
        HessianProducts,
        Help("How Hessian-vector products are formed.", label="Hessian products"),
    ] = "finite_difference"
    epsilon: Annotated[
        float,
        Range(0, 10, above=True, usual="1e-3 to 1e-2"),
        Help("Length of the move in the weights for a finite difference (absolute)."),
    ] = 3e-3
    tolerance: Annotated[
        float, Range(0, 1), Help("Relative residual at which a solve is finished.")
    ] = 1e-4
    batch: Annotated[
        int,
        Range(0, 4096),
        Help("Samples in the batch whose Hessian is used; 0 is the simulated user's own batch."),
    ] = 0
    on_divergence: Annotated[OnDivergence, Help("What happens when a solve diverges.")] = "skip"

    def __post_init__(self) -> None:
        check_fields(self, "solver")

    @property
    def takes_differences(self) -> bool:
        """True where a solve subtracts gradients, which needs all digits of fp32."""
        return self.method != "first_order" and self.products == "finite_difference"
