"""The implicit gradient: closed forms, an unrolled run, finite differences, recorded steps."""

from __future__ import annotations

import pytest
import torch

from resalign.backend.bilevel.hessian import hessian_product
from resalign.backend.bilevel.hypergradient import LossAfter, hypergradient
from resalign.backend.bilevel.inner_loop import inner_loop
from resalign.backend.bilevel.vectors import assign, flatten, snapshot
from resalign.backend.errors import DivergenceError
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.solver import SolverConfig

N, M = 6, 4
GAMMA = 0.7


def leaf(*shape: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=random).requires_grad_()


def spd(n: int, seed: int) -> torch.Tensor:
    root = leaf(n, n, seed=seed).detach()
    return root @ root.T / n + 0.1 * torch.eye(n, dtype=torch.float64)


def solver(method: str, products: str = "exact", **changes) -> SolverConfig:
    settings = {"iterations": 200, "gamma": GAMMA, "tolerance": 1e-12, "epsilon": 1e-3}
    return SolverConfig(method=method, products=products, **(settings | changes))


@pytest.mark.parametrize("products", ["exact", "finite_difference"])
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_equals_the_closed_form_of_a_quadratic(method, products):
    """Shared weights: (I + γH)⁻¹ g for L_ft = ½ θᵀHθ and L_harm = gᵀθ."""
    hessian, g = spd(N, 1), leaf(N, seed=2).detach()
    theta = {"a": leaf(2, seed=3), "b": leaf(2, 2, seed=4)}

    def join() -> torch.Tensor:
        return torch.cat([t.reshape(-1) for t in theta.values()])

    found = hypergradient(
        LossAfter(lambda: g @ join()), lambda: join() @ hessian @ join() / 2, theta, theta,
        solver(method, products),
    )  # fmt: skip
    expected = torch.linalg.solve(torch.eye(N, dtype=torch.float64) + GAMMA * hessian, g)
    torch.testing.assert_close(
        flatten(list(found.tensors.values())), expected, rtol=1e-6, atol=1e-8
    )
    assert found.solution is not None and found.solution.residual < 1e-8


@pytest.mark.parametrize("products", ["exact", "finite_difference"])
def test_equals_the_derivative_of_the_closed_form_minimiser(products):
    """Separate weights: dL_harm(θ, φ*(θ))/dθ where φ*(θ) is known, by autograd."""
    h, c, a = spd(M, 1), leaf(M, N, seed=2).detach(), leaf(M, seed=3).detach()
    w, start = leaf(N, seed=4).detach(), leaf(M, seed=5).detach()
    theta = leaf(N, seed=6)

    def fine_tuning(t: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        return f @ h @ f / 2 + f @ c @ t

    def harm(t: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        return (f - a).square().sum() / 2 + w @ t + (t @ c.T @ f)

    def minimiser(t: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(h + torch.eye(M, dtype=torch.float64) / GAMMA,
                                  start / GAMMA - c @ t)  # fmt: skip

    expected = torch.autograd.grad(harm(theta, minimiser(theta)), theta)[0]
    phi = minimiser(theta).detach().requires_grad_()
    found = hypergradient(
        LossAfter(lambda: harm(theta, phi)), lambda: fine_tuning(theta, phi),
        {"t": theta}, {"f": phi}, solver("minres", products),
    )  # fmt: skip
    torch.testing.assert_close(found.tensors["t"], expected, rtol=1e-6, atol=1e-8)


class Regression:
    """A small nonlinear denoiser in float64: fine-tuning and harm losses of its weights."""

    def __init__(self) -> None:
        self.x, self.y = leaf(20, 3, seed=1).detach(), leaf(20, 2, seed=2).detach()
        self.harmful = leaf(20, 2, seed=3).detach()
        self.theta = {"in": leaf(3, 4, seed=4), "out": leaf(4, 2, seed=5)}

    def predict(self, theta) -> torch.Tensor:
        return torch.tanh(self.x @ theta["in"]) @ theta["out"]

    def fine_tuning(self, theta) -> torch.Tensor:
        return (self.predict(theta) - self.y).square().mean()

    def harm(self, theta) -> torch.Tensor:
        return -torch.tanh((self.predict(theta) - self.harmful).square()).mean()


def unrolled(problem: Regression, gamma: float, steps: int, rate: float) -> tuple[dict, dict]:
    """θ* of proximal gradient descent, and dL_harm(θ*)/dθ through every step of it."""
    theta = problem.theta
    u = dict(theta)
    for _ in range(steps):
        loss = problem.fine_tuning(u)
        slopes = torch.autograd.grad(loss, list(u.values()), create_graph=True)
        u = {
            name: value - rate * (slope + (value - theta[name]) / gamma)
            for (name, value), slope in zip(u.items(), slopes, strict=True)
        }
    gradients = torch.autograd.grad(problem.harm(u), list(theta.values()))
    return {n: t.detach() for n, t in u.items()}, dict(zip(theta, gradients, strict=True))


@pytest.mark.parametrize("products", ["exact", "finite_difference"])
def test_equals_a_fully_unrolled_run(products):
    """At the end of a long proximal run, the implicit gradient is that through the whole run."""
    problem = Regression()
    star, expected = unrolled(problem, GAMMA, steps=300, rate=0.2)
    config = FineTuneConfig(name="gd", optimiser="sgd", learning_rate=0.2, steps=300)
    inner_loop(
        problem.theta,
        lambda _: lambda: problem.fine_tuning(problem.theta),
        config,
        300,
        gamma=GAMMA,
    )
    for name, tensor in problem.theta.items():
        torch.testing.assert_close(tensor.detach(), star[name], rtol=1e-9, atol=1e-10)

    found = hypergradient(
        LossAfter(lambda: problem.harm(problem.theta)),
        lambda: problem.fine_tuning(problem.theta),
        problem.theta, problem.theta, solver("cg", products),
    )  # fmt: skip
    for name, part in expected.items():
        torch.testing.assert_close(found.tensors[name], part, rtol=1e-5, atol=1e-8)
    plain = torch.autograd.grad(problem.harm(problem.theta), list(problem.theta.values()))
    wrong = flatten(list(plain)) - flatten(list(expected.values()))
    assert wrong.norm() > 0.05 * flatten(list(expected.values())).norm()  # the Hessian mattered


def test_equals_finite_differences_of_the_whole_run():
    """Moving θ a little and running again changes L_harm(θ*) as the implicit gradient says."""
    problem = Regression()
    start = snapshot(problem.theta)
    config = FineTuneConfig(name="gd", optimiser="sgd", learning_rate=0.2, steps=400)
    direction = {n: leaf(*t.shape, seed=9).detach() for n, t in problem.theta.items()}

    def run(move: float) -> float:
        assign(problem.theta, {n: t + move * direction[n] for n, t in start.items()})
        inner_loop(problem.theta, lambda _: lambda: problem.fine_tuning(problem.theta), config,
                   400, gamma=GAMMA)  # fmt: skip
        return float(problem.harm(problem.theta).detach())

    slope = (run(1e-4) - run(-1e-4)) / 2e-4
    run(0.0)
    found = hypergradient(
        LossAfter(lambda: problem.harm(problem.theta)),
        lambda: problem.fine_tuning(problem.theta),
        problem.theta, problem.theta, solver("minres"),
    )  # fmt: skip
    implicit = sum(float((found.tensors[n] * direction[n]).sum()) for n in direction)
    assert implicit == pytest.approx(slope, rel=1e-5)


def test_products_leave_the_weights_to_the_bit():
    """A finite difference moves the weights and puts back exactly what was there."""
    problem = Regression()
    before = snapshot(problem.theta)
    with hessian_product(lambda: problem.fine_tuning(problem.theta), problem.theta) as product:
        product(torch.ones(20, dtype=torch.float64))
    assert all(torch.equal(before[n], t) for n, t in problem.theta.items())


def test_both_kinds_of_products_agree_and_are_symmetric():
    """Exact and differenced products are the same matrix, and uᵀHv = vᵀHu."""
    problem = Regression()
    u, v = leaf(20, seed=7).detach(), leaf(20, seed=8).detach()
    results = {}
    for kind in ("exact", "finite_difference"):
        with hessian_product(
            lambda: problem.fine_tuning(problem.theta), problem.theta, products=kind, epsilon=1e-4
        ) as product:
            results[kind] = product(v), product(u)
    hv, hu = results["exact"]
    torch.testing.assert_close(results["finite_difference"][0], hv, rtol=1e-6, atol=1e-8)
    assert float(u @ hv) == pytest.approx(float(v @ hu), rel=1e-10)


def test_a_failed_solve_is_counted_or_stops_the_run():
    """`skip` gives the first-order gradient and says why; `stop` raises."""
    theta = {"t": leaf(3, seed=1)}
    g = torch.ones(3, dtype=torch.float64)

    def harm() -> torch.Tensor:
        return g @ theta["t"]

    def steep() -> torch.Tensor:
        return 50 * theta["t"].square().sum()

    found = hypergradient(
        LossAfter(harm), steep, theta, theta, solver("richardson", on_divergence="skip")
    )
    assert "diverges" in found.skipped
    assert found.solution is None
    torch.testing.assert_close(found.tensors["t"], g)
    with pytest.raises(DivergenceError, match="diverges"):
        hypergradient(
            LossAfter(harm), steep, theta, theta, solver("richardson", on_divergence="stop")
        )


def test_a_mixed_product_that_is_not_finite_is_a_failed_solve():
    """∂²(φ √θ)/∂θ∂φ has no value at θ = 0, though the system for φ is solved."""
    theta, phi = {"t": torch.zeros(1, requires_grad=True)}, {"f": torch.ones(1, requires_grad=True)}

    def fine_tuning() -> torch.Tensor:
        return (phi["f"] ** 2 / 2 + phi["f"] * theta["t"].sqrt()).sum()

    def harm() -> torch.Tensor:
        return (phi["f"] + 5 * theta["t"]).sum()

    found = hypergradient(
        LossAfter(harm), fine_tuning, theta, phi, solver("cg", on_divergence="skip")
    )
    assert "mixed Hessian product is not finite" in found.skipped
    assert found.tensors["t"].tolist() == [5.0]
    with pytest.raises(DivergenceError, match="mixed Hessian product"):
        hypergradient(LossAfter(harm), fine_tuning, theta, phi, solver("cg", on_divergence="stop"))


@pytest.mark.parametrize("method", ["first_order", "minres"])
def test_retention_after_fine_tuning_adds_to_what_is_differentiated(method):
    """The gradient is that of λ · L_harm(θ*) + ν · L_retain(θ*); both losses are reported."""
    problem = Regression()

    def retain() -> torch.Tensor:
        return (problem.predict(problem.theta) - 1).square().mean()

    def gradient_of(after: LossAfter):
        return hypergradient(
            after, lambda: problem.fine_tuning(problem.theta), problem.theta, problem.theta,
            solver(method),
        )  # fmt: skip

    found = gradient_of(LossAfter(lambda: problem.harm(problem.theta), retain, 0.4, 3.0))
    expected = gradient_of(LossAfter(lambda: 0.4 * problem.harm(problem.theta) + 3 * retain()))
    for name, part in expected.tensors.items():
        torch.testing.assert_close(found.weight * found.tensors[name], part, rtol=1e-8, atol=1e-10)
    assert float(found.harm_after) == pytest.approx(float(problem.harm(problem.theta).detach()))
    assert found.retain_after is not None
    assert float(found.retain_after) == pytest.approx(float(retain().detach()))


def test_first_order_takes_no_second_look_at_the_fine_tuning_loss():
    """First order never calls L_ft: its cost is one gradient of L_harm."""
    theta = {"t": leaf(3, seed=1)}

    def never() -> torch.Tensor:
        raise AssertionError("L_ft was evaluated")

    found = hypergradient(
        LossAfter(lambda: theta["t"].sum()), never, theta, theta, solver("first_order")
    )
    torch.testing.assert_close(found.tensors["t"], torch.ones(3, dtype=torch.float64))


def test_retention_without_a_weight_or_a_loss_changes_nothing():
    """A weight of 0, which is the default, costs no look at L_retain."""
    problem = Regression()

    def never() -> torch.Tensor:
        raise AssertionError("L_retain was evaluated")

    def gradient_of(**more):
        after = LossAfter(lambda: problem.harm(problem.theta), **more)
        return hypergradient(after, never, problem.theta, problem.theta, solver("first_order"))

    plain = gradient_of()
    for found in (gradient_of(retain=never), gradient_of(retain_weight=3.0)):
        assert found.retain_after is None
        assert all(torch.equal(part, plain.tensors[name]) for name, part in found.tensors.items())


@pytest.mark.parametrize("method", ["first_order", "minres"])
def test_the_loss_scale_keeps_small_half_precision_gradients(method):
    """1e-4 · 1e-5 is 0 in half precision, but not 1024 times as much; so for H and L_retain."""
    theta = {"t": torch.zeros(3, requires_grad=True)}

    def small() -> torch.Tensor:
        return (theta["t"].half() * 1e-4).float().sum() * 1e-5

    def curved() -> torch.Tensor:
        return ((1000 * theta["t"] ** 2).half() * 1e-4).float().sum() * 1e-5

    found = hypergradient(
        LossAfter(small, small, 1.0, 2.0), curved, theta, theta,
        solver(method, "finite_difference", gamma=1e6, epsilon=1.0),
        scale=1024.0,
    )  # fmt: skip
    curvature = 2.0 if method == "minres" else 0.0  # γ H
    expected = torch.full((3,), 3e-9 / (1 + curvature))
    torch.testing.assert_close(found.tensors["t"], expected, rtol=0.1, atol=0)
