"""One simulated user: train as they would, judge the harm, differentiate through it.

`shared` moves θ itself; `adapter` a fresh LoRA on the hardened weights, or all weights for
configurations whose method is `full`; `full` always all weights. Whatever moved is put back to
the bit before this returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapter.apply import AdaptedDenoiser
from ..plan.fine_tune import FineTuneConfig
from ..plan.hardening import HardeningPlan, Simulate
from .hypergradient import Hypergradient, hypergradient
from .inner_loop import InnerRun, inner_loop, inner_loops
from .objective import Harm, Seat
from .solvers import Solution
from .vectors import Loss, Parameters, Terms, assign, snapshot


@dataclass(frozen=True, slots=True)
class SimulatedUser:
    """A run and what it taught. `gradient` is dL_harm(θ*)/dθ by name."""

    fine_tune: FineTuneConfig
    run: InnerRun
    result: Hypergradient

    @property
    def gradient(self) -> dict[str, Tensor]:
        return self.result.tensors


# What a user is made of: what a rank must know to receive one.
USER_CLASSES = (SimulatedUser, FineTuneConfig, InnerRun, Hypergradient, Solution)


def simulate_user(
    denoiser: AdaptedDenoiser,
    plan: HardeningPlan,
    fine_tune: FineTuneConfig,
    steps: int,
    *,
    loss: Callable[[int], Loss],
    harm: Harm,
    seed: int,
    retain: Loss | None = None,
    retain_weight: float = 0.0,
    on_step: Callable[[int], None] | None = None,
) -> SimulatedUser:
    """Fine-tune for `steps`, then take the hypergradient of `harm` there.

    Args:
        loss: the fine-tuning loss of inner step 1 to `steps`, as a frozen closure; `loss(0)`
            is the frozen batch whose Hessian the solve uses.
        seed: of the fresh LoRA, where one is made.
        retain, retain_weight: L_retain and its weight relative to L_harm's at θ*.
        on_step: called after each inner step and before each Hessian-vector product's gradients,
            so that a stop is heard within one gradient; may raise to stop.
    """
    with _trained(denoiser, plan.simulate, fine_tune, seed) as phi:
        run = inner_loop(
            phi,
            loss,
            fine_tune,
            steps,
            gamma=plan.solver.gamma if plan.proximal else None,
            scale=denoiser.loss_scale,
            on_step=on_step,
        )
        result = _learn(
            denoiser, plan, phi, _watched(loss(0), on_step, steps), harm, retain, retain_weight
        )
    return SimulatedUser(fine_tune, run, result)


def simulate_users(
    denoiser: AdaptedDenoiser,
    plan: HardeningPlan,
    fine_tunes: Sequence[FineTuneConfig],
    steps: Sequence[int],
    *,
    terms: Callable[[int, Sequence[int], Seat], Sequence[Terms]],
    frozen: Callable[[int], Loss],
    harm: Harm,
    retain: Loss | None = None,
    retain_weight: float = 0.0,
    on_step: Callable[[int], None] | None = None,
) -> list[SimulatedUser]:
    """Several users that move θ itself (`shared`), whose inner steps share passes.

    Args:
        terms: of an inner step and the users still at work: what their losses are sums of.
        frozen: of a user: the loss whose Hessian the solve uses.
        fine_tunes, steps: of each user; the rest as of `simulate_user`.
    """
    with denoiser.side_by_side(len(fine_tunes)) as copies:

        def seated(step: int, at_work: Sequence[int]) -> Sequence[Terms]:
            return terms(
                step, at_work, lambda order: copies.seat([(at_work[u], n) for u, n in order])
            )

        runs = inner_loops(
            copies.users,
            seated,
            fine_tunes,
            steps,
            gamma=plan.solver.gamma if plan.proximal else None,
            scale=denoiser.loss_scale,
            on_step=on_step,
        )
    users = []
    for number, (fine_tune, run) in enumerate(zip(fine_tunes, runs, strict=True)):
        loss = _watched(frozen(number), on_step, run.steps)
        with _trained(denoiser, plan.simulate, fine_tune, 0) as theta:
            assign(theta, copies.users[number])
            result = _learn(denoiser, plan, theta, loss, harm, retain, retain_weight)
        users.append(SimulatedUser(fine_tune, run, result))
    return users


def _watched(frozen: Loss, on_step: Callable[[int], None] | None, steps: int) -> Loss:
    """The loss of the products, each of whose gradients can be stopped."""

    def value() -> Tensor:
        if on_step is not None:
            on_step(steps)
        return frozen()

    return value


def _learn(
    denoiser: AdaptedDenoiser,
    plan: HardeningPlan,
    phi: Parameters,
    fine_tuning: Loss,
    harm: Harm,
    retain: Loss | None,
    retain_weight: float,
) -> Hypergradient:
    """The hypergradient at θ*, where the weights are now; holds nothing of them."""
    result = hypergradient(
        harm.loss, fine_tuning, denoiser.theta, phi, plan.solver, scale=denoiser.loss_scale,
        retain=retain, retain_weight=retain_weight,
    )  # fmt: skip
    # The gradients may be views of, or computed from, weights about to be put back.
    detached = {name: part.detach().clone() for name, part in result.tensors.items()}
    solution = result.solution  # what it solved for is in the gradient: only its figures are kept
    if solution is not None:
        solution = replace(solution, x=solution.x.new_empty(0))
    return replace(result, tensors=detached, solution=solution)


@contextmanager
def _trained(
    denoiser: AdaptedDenoiser, simulate: Simulate, fine_tune: FineTuneConfig, seed: int
) -> Iterator[Parameters]:
    """The parameters that this user trains; put back on leaving, whatever happened."""
    if simulate == "shared":
        start = snapshot(denoiser.theta)
        try:
            yield denoiser.theta
        finally:
            assign(denoiser.theta, start)
    elif simulate == "full" or fine_tune.method == "full":
        with denoiser.base_weights() as phi:
            yield phi
    else:
        with denoiser.fresh_lora(fine_tune.rank, seed) as phi:
            yield phi


def accumulate(total: dict[str, Tensor], gradients: Iterable[Tensor], weight: float) -> None:
    """total += weight · gradients, in place; gradients in the order of `total`."""
    torch._foreach_add_(list(total.values()), list(gradients), alpha=weight)
