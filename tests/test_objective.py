"""One outer step of `harden` against its objective, written out in plain PyTorch.

    F(θ) = L_harm(θ) + λ · mean_j [L_harm(θ*_j) − L_harm(θ)] + μ · L_retain(θ)
           + ν · mean_j L_retain(θ*_j)

`fakes_objective` has the losses, and says where the step's batches and gradient are read from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fakes_objective import (
    LAMBDA,
    MU,
    NU,
    USERS,
    Reference,
    Weights,
    data,
    in_one,
    plan,
    second_step,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fakes import tiny_model
from resalign.backend.hardening.run import harden
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.harm import HarmConfig
from resalign.backend.plan.solver import SolverConfig

MIXED = replace(USERS[0], concept_share=0.5, method="dreambooth", prior_data="c", prior_weight=2.0)
TWO = (Concept("bad", prompts=("bad",)), Concept("worse", prompts=("worse",)))
FULL = replace(USERS[1], learning_rate=1e-3), replace(USERS[0], learning_rate=0.1)
CASES = {
    "one user after the other": {},
    "users side by side": {"users_at_once": 2},
    "in micro-batches": {"micro_batch": 2},
    "redirected in micro-batches, two concepts": {
        "harm": HarmConfig(loss="redirect", guidance=1.5), "micro_batch": 2, "forget_batch": 6,
        "concepts": TWO, "seed": 1,
    },
    "a proximal user with some of the concept and a prior": {
        "fine_tunes": (MIXED,), "configurations_per_step": 1,
        "proximal": True, "solver": SolverConfig(gamma=0.5),
    },
    "a user with a LoRA of their own, and one who trains all weights": {
        "simulate": "adapter", "configurations_per_step": 2,
        "fine_tunes": (replace(USERS[1], learning_rate=0.1), replace(FULL[1], method="full")),
    },
    "users who train all weights": {
        "simulate": "full", "fine_tunes": FULL, "configurations_per_step": 2
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_a_step_is_that_of_the_stated_objective(tmp_path, case):
    """First order: θ*_j moves with θ one to one, and what else a user has trained stays."""
    own = plan(**CASES[case])
    apart, redirected = own.simulate != "shared", own.harm.loss == "redirect"
    dtype = torch.float32 if apart else torch.float64  # what training all weights asks for
    exact = 2e-3 if apart else 1e-5
    seen = second_step(own, tmp_path, dtype)
    reference, users = Reference(seen, dtype), seen.users
    assert len(users) == own.configurations_per_step
    theta = {name: part.requires_grad_() for name, part in seen.theta.items()}
    gamma = own.solver.gamma if own.proximal else 0.0
    ends = [reference.fine_tuned(theta, user, gamma=gamma) for user in users]
    stars = [
        {**end, **theta} if apart
        else {name: part + (end[name] - part).detach() for name, part in theta.items()}
        for end in ends
    ]  # fmt: skip

    def mean(loss: Callable[[Weights], Tensor]) -> Tensor:
        return sum(loss(star) for star in stars) / len(stars)

    harm, retain = reference.harm(theta), reference.retain(theta)
    terms = {
        "harm": harm,
        "resilience": LAMBDA * mean(lambda star: reference.harm(star) - harm),
        "retain": MU * retain,
        "retain after": NU * mean(reference.retain),
    }
    leaves = list(theta.values())
    expected = in_one(torch.autograd.grad(sum(terms.values()), leaves, retain_graph=True))
    size = float(expected.norm())
    torch.testing.assert_close(
        in_one(seen.gradient), expected, rtol=exact, atol=exact * size / len(expected) ** 0.5
    )

    for name, term in terms.items():  # none is so small that it might be wrong unnoticed
        part = in_one(torch.autograd.grad(term, leaves, retain_graph=True))
        assert part.norm() > 0.02 * size, name
    record, base = seen.record, float(reference.harm({})) if redirected else 0.0
    assert record.harm == pytest.approx(float(harm.detach()), rel=exact)
    assert record.retain == pytest.approx(float(retain.detach()), rel=exact)
    assert record.gradient_norm == pytest.approx(size, rel=exact)
    assert (record.resilience_weight, record.retain_weight) == (LAMBDA, MU)
    for simulation, user, star, end in zip(record.simulations, users, stars, ends, strict=True):
        after, kept = float(reference.harm(star).detach()), float(reference.retain(star).detach())
        start = reference.start(theta, user)
        move = in_one([end[name] - part.detach() for name, part in start.items()])
        assert simulation.steps == user.steps
        assert simulation.harm_after == pytest.approx(after, rel=exact)
        assert simulation.retain_after == pytest.approx(kept, rel=exact)
        assert simulation.q == pytest.approx((after - base) / (record.harm - base), rel=10 * exact)
        assert simulation.move == pytest.approx(float(move.norm()), rel=exact)


@pytest.mark.parametrize("products", ["exact", "finite_difference"])
def test_the_implicit_gradient_solves_the_system_of_the_frozen_batch(tmp_path, products):
    """J = 1, ν = 0: what the user adds to the gradient is λ x with (I + γH) x = ∇L_harm(θ*)."""
    gamma = 1.0
    solver = SolverConfig(
        method="minres", products=products, gamma=gamma, iterations=60, tolerance=1e-9
    )
    own = plan(
        fine_tunes=USERS[:1], configurations_per_step=1, retain_after_weight=0.0, solver=solver
    )
    seen = second_step(own, tmp_path)
    reference, user = Reference(seen), USERS[0]
    theta = {name: part.requires_grad_() for name, part in seen.theta.items()}

    def gradient(loss: Tensor, weights: Weights, **options) -> Tensor:
        return in_one(torch.autograd.grad(loss, list(weights.values()), **options))

    direct = (1 - LAMBDA) * reference.harm(theta) + MU * reference.retain(theta)
    x = (in_one(seen.gradient) - gradient(direct, theta)) / LAMBDA
    end = reference.fine_tuned(theta, user)
    star = {name: part.requires_grad_() for name, part in end.items()}
    # The batch after those of the inner steps, which is none of them, is what the solve uses.
    met, inner = seen.watch.of("a"), user.steps * user.batch
    assert not met[inner:].within(met[:inner]).any()
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        slope = gradient(reference.fine_tuning(star, user, user.steps), star, create_graph=True)
        bent = gradient(slope @ x, star)
    g = gradient(reference.harm(star), star)
    torch.testing.assert_close(x + gamma * bent, g, rtol=1e-3, atol=1e-4 * float(g.norm()))
    assert gamma * bent.norm() > 0.05 * g.norm()  # the Hessian matters
    (simulation,) = seen.record.simulations
    assert simulation.skipped == "" and simulation.retain_after is None
    assert simulation.residual == pytest.approx(0, abs=1e-4) and simulation.products > 1


def test_a_step_is_adamws_with_the_plans_rate_and_weight_decay(tmp_path):
    seen = second_step(plan(final_learning_rate=1e-2), tmp_path)
    assert seen.record.learning_rate == pytest.approx(1e-2)  # at the last step
    parts = [part.clone().requires_grad_() for part in seen.theta.values()]
    optimiser = torch.optim.AdamW(parts, lr=1e-2, weight_decay=0.2)
    for part, gradient, first, square in zip(
        parts, seen.gradient.values(), *seen.moments, strict=True
    ):
        part.grad = gradient
        optimiser.state[part] = {
            "step": torch.tensor(1.0), "exp_avg": first, "exp_avg_sq": square
        }  # fmt: skip
    optimiser.step()
    for part, after in zip(parts, seen.after.values(), strict=True):
        torch.testing.assert_close(part.detach(), after, rtol=1e-6, atol=1e-9)


def test_a_long_gradient_is_shortened_and_its_full_length_recorded(tmp_path):
    """It keeps its direction; here it is that of L_harm alone."""
    clipped = second_step(plan(gradient_norm=0.01, retain_weight=0.0, retain_after_weight=0.0,
                               resilience_weight=0.0), tmp_path)  # fmt: skip
    reference = Reference(clipped)
    theta = {name: part.requires_grad_() for name, part in clipped.theta.items()}
    whole = in_one(torch.autograd.grad(reference.harm(theta), list(theta.values())))
    assert clipped.record.gradient_norm == pytest.approx(float(whole.norm()), rel=1e-5)
    assert whole.norm() > 0.02
    shortened = whole * (0.01 / float(whole.norm()))
    torch.testing.assert_close(in_one(clipped.gradient), shortened, rtol=1e-3, atol=1e-8)


@pytest.mark.slow
def test_in_half_precision_every_gradient_is_taken_of_a_scaled_loss():
    """Gradients in the network are 1024 times those in float32; the update is not."""
    own = plan(
        configurations_per_step=3, users_at_once=2,  # two side by side, and one alone
        solver=SolverConfig(method="minres", iterations=2, tolerance=0.0),
    )  # fmt: skip
    arrived: dict[str, list[float]] = {"fp32": [], "fp16": []}
    norms = {}
    for precision, sizes in arrived.items():
        model = tiny_model()

        def note(_, given, output, sizes=sizes):
            if output[0].requires_grad:
                output[0].register_hook(lambda back: sizes.append(float(back.float().norm())))

        model.denoiser.register_forward_hook(note)
        result = harden(model, replace(own, precision=precision), data=data())
        norms[precision] = result.records[1].gradient_norm
    assert len(arrived["fp32"]) > 6 and norms["fp16"] == pytest.approx(norms["fp32"], rel=0.1)
    assert arrived["fp16"] == pytest.approx([1024 * size for size in arrived["fp32"]], rel=0.5)
