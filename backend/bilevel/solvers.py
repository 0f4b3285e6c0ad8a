"""Solve (I + M) x = b, with M symmetric and known only through its products with vectors.

M = γH, H the Hessian of the simulated user's loss. Richardson's iteration is the paper's,
x ← b − M x (Li et al., arXiv:2507.16302, step 1; it needs ‖M‖ < 1); conjugate gradients and
MINRES are SciPy's, on CPU vectors in float64, with the products on the network's device. CG needs
I + M positive definite, MINRES only symmetric. Every solve reports its residual and the
largest ‖M v‖ / ‖v‖ met, which is a lower bound of ‖M‖.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DivergenceError
from ..plan.solver import SolverMethod

Product = Callable[[Tensor], Tensor]
_NOISE = 1e-3  # a residual below this may stop falling: the products are no more exact


@dataclass(frozen=True, slots=True)
class Solution:
    """x ([n]), its relative residual ‖b − x − M x‖ / ‖b‖, products spent, bound of ‖M‖.

    Richardson's residual is that of the iterate before x (x itself would cost one more
    product): an upper bound while the iteration contracts.
    """

    x: Tensor
    residual: float
    products: int
    curvature: float


@dataclass(slots=True)
class _Counted:
    """A product that counts its calls and keeps the largest stretch ‖M v‖ / ‖v‖."""

    product: Product
    calls: int = 0
    curvature: float = 0.0
    negative: bool = False

    def __call__(self, vector: Tensor) -> Tensor:
        image = self.product(vector)
        self.calls += 1
        length = float(torch.linalg.vector_norm(vector))
        stretch = float(torch.linalg.vector_norm(image)) / length if length else 0.0
        if stretch != stretch or stretch == float("inf"):
            raise DivergenceError(
                "a Hessian-vector product is not finite: lower the simulated learning rate, or "
                "use a larger solver.epsilon with half precision"
            )
        self.curvature = max(self.curvature, stretch)
        self.negative |= length > 0 and float(vector @ image) <= -(length**2)
        return image


def solve(
    method: SolverMethod, product: Product, b: Tensor, *, iterations: int, tolerance: float
) -> Solution:
    """Find x with (I + M) x ≈ b, with at most `iterations` products v ↦ M v.

    Raises:
        DivergenceError: the residual grew, the system is indefinite (CG), or a product is
            not finite. The gradient is never quietly replaced by b.
    """
    if method == "first_order" or not bool(b.any()):
        return Solution(b.clone(), float("nan") if bool(b.any()) else 0.0, 0, float("nan"))
    counted = _Counted(product)
    if method == "richardson":
        return _richardson(counted, b, iterations, tolerance)
    return _krylov(method, counted, b, iterations, tolerance)


def _richardson(product: _Counted, b: Tensor, iterations: int, tolerance: float) -> Solution:
    size = torch.linalg.vector_norm(b)
    x, previous = b, float("inf")
    for _ in range(iterations):
        following = b - product(x)
        residual = float(torch.linalg.vector_norm(following - x) / size)
        if residual >= previous and residual <= _NOISE:
            break
        if residual >= min(previous, 1.0):
            raise DivergenceError(
                f"Richardson's iteration diverges: residual {residual:.2g} after {previous:.2g} "
                f"(γ‖H‖ is at least {product.curvature:.2g}; it must be below 1); lower "
                "solver.gamma, or use method 'minres'"
            )
        x, previous = following, residual
        if residual <= tolerance:
            break
    return Solution(x, previous, product.calls, product.curvature)


def _krylov(
    method: SolverMethod, product: _Counted, b: Tensor, iterations: int, tolerance: float
) -> Solution:
    import numpy
    from scipy.sparse import linalg

    def apply(vector: numpy.ndarray) -> numpy.ndarray:
        v = torch.from_numpy(numpy.ascontiguousarray(vector).reshape(-1)).to(b)
        return (v + product(v)).double().cpu().numpy()

    rhs = b.double().cpu().numpy()
    system = linalg.LinearOperator((len(rhs), len(rhs)), matvec=apply, dtype=rhs.dtype)  # type: ignore[call-arg]
    run = linalg.cg if method == "cg" else linalg.minres
    # One product is kept back to measure the residual instead of trusting the recurrence.
    found, _ = run(system, rhs, rtol=tolerance, maxiter=max(1, iterations - 1))
    if method == "cg" and product.negative:
        raise DivergenceError(
            "conjugate gradients met negative curvature: I + γH is not positive definite here; "
            "lower solver.gamma, or use method 'minres'"
        )
    residual = float(numpy.linalg.norm(rhs - apply(found)) / numpy.linalg.norm(rhs))
    if not residual <= 1:
        raise DivergenceError(
            f"{method} left a relative residual of {residual:.2g}, worse than no solve at all; "
            "give it more solver.iterations or lower solver.gamma"
        )
    x = torch.from_numpy(numpy.asarray(found)).to(b)
    return Solution(x, residual, product.calls, product.curvature)
