"""The linear solves, against dense solutions in float64."""

from __future__ import annotations

import pytest
import torch

from resalign.backend.bilevel.solvers import solve
from resalign.backend.errors import DivergenceError

N = 12


def symmetric(low: float, high: float, seed: int = 0) -> torch.Tensor:
    """A symmetric [N, N] matrix with eigenvalues evenly from `low` to `high`."""
    random = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=random))
    return basis @ torch.diag(torch.linspace(low, high, N, dtype=torch.float64)) @ basis.T


@pytest.fixture
def b() -> torch.Tensor:
    return torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def dense(matrix: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(torch.eye(N, dtype=torch.float64) + matrix, b)


@pytest.mark.parametrize("method", ["richardson", "cg", "minres"])
def test_equals_the_dense_solve(method, b):
    """With enough products every method reaches the dense solution, and says so."""
    matrix = symmetric(-0.4, 0.5)
    found = solve(method, lambda v: matrix @ v, b, iterations=80, tolerance=1e-12)
    torch.testing.assert_close(found.x, dense(matrix, b), rtol=1e-9, atol=1e-10)
    assert found.residual <= 1e-11
    assert 0 < found.products <= 80


@pytest.mark.parametrize("products", [1, 3, 5])
def test_richardson_is_the_truncated_neumann_series(products, b):
    """K products give Σ_{k=0..K} (−M)^k b: none is spent on a zero vector."""
    matrix = symmetric(-0.3, 0.3)
    found = solve("richardson", lambda v: matrix @ v, b, iterations=products, tolerance=0)
    expected, term = b.clone(), b.clone()
    for _ in range(products):
        term = -(matrix @ term)
        expected += term
    torch.testing.assert_close(found.x, expected)
    assert found.products == products
    truth = torch.linalg.vector_norm(b - found.x - matrix @ found.x) / torch.linalg.vector_norm(b)
    assert truth <= found.residual < 1


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_a_truncated_krylov_solve_reports_its_true_residual(method, b):
    """The residual is measured by a product of its own, and the budget of products is kept."""
    matrix = symmetric(0.1, 5.0)
    found = solve(method, lambda v: matrix @ v, b, iterations=4, tolerance=0)
    truth = torch.linalg.vector_norm(b - found.x - matrix @ found.x) / torch.linalg.vector_norm(b)
    assert found.residual == pytest.approx(float(truth), rel=1e-6)
    assert 1e-6 < found.residual < 1


def test_a_diverging_solve_is_an_error_not_a_smaller_gradient(b):
    """Richardson needs ‖M‖ < 1; beyond, it names γ and the way out."""
    matrix = symmetric(-0.5, 2.0)
    with pytest.raises(DivergenceError, match=r"lower\s+solver.gamma"):
        solve("richardson", lambda v: matrix @ v, b, iterations=5, tolerance=1e-6)


def test_products_with_a_little_noise_are_no_divergence(b):
    """Finite differences in float32 carry noise: the iteration ends at its floor, unrefused."""
    matrix, random = symmetric(-0.01, 0.01), torch.Generator().manual_seed(4)

    def noisy(v: torch.Tensor) -> torch.Tensor:
        return matrix @ v + 1e-5 * torch.randn(N, dtype=torch.float64, generator=random)

    found = solve("richardson", noisy, b, iterations=10, tolerance=0)
    torch.testing.assert_close(found.x, dense(matrix, b), rtol=1e-3, atol=1e-4)


def test_minres_solves_an_indefinite_system_that_cg_refuses(b):
    """I + M with eigenvalues of both signs: MINRES is exact, CG says why it cannot."""
    matrix = symmetric(-3.3, 2.0)
    found = solve("minres", lambda v: matrix @ v, b, iterations=60, tolerance=1e-12)
    torch.testing.assert_close(found.x, dense(matrix, b), rtol=1e-7, atol=1e-8)
    with pytest.raises(DivergenceError, match="negative curvature"):
        solve("cg", lambda v: matrix @ v, b, iterations=60, tolerance=1e-12)


def test_the_curvature_is_a_lower_bound_near_the_norm(b):
    """‖M v‖ / ‖v‖ over the products: never above ‖M‖, and close to it after several."""
    matrix = symmetric(-0.2, 0.9)
    found = solve("richardson", lambda v: matrix @ v, b, iterations=12, tolerance=0)
    assert 0.6 < found.curvature <= 0.9 + 1e-9


def test_products_that_are_not_finite_are_an_error(b):
    """A NaN in the Hessian stops the solve at once."""
    with pytest.raises(DivergenceError, match="not finite"):
        solve("minres", lambda v: v * float("nan"), b, iterations=5, tolerance=1e-6)


def test_first_order_spends_no_product(b):
    """First order is x = b."""
    found = solve("first_order", lambda v: v / 0, b, iterations=5, tolerance=0)
    torch.testing.assert_close(found.x, b)
    assert found.products == 0
