"""One outer step by gradients, with its safeguards: the recipe, the regulator and the record."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from ..bilevel.losses import remaining_harm
from ..bilevel.objective import Harm
from ..bilevel.simulate import SimulatedUser
from ..bilevel.vectors import norm_and_clip
from ..errors import DivergenceError
from ..run.records import SimulationRecord, StepRecord
from .ramps import learning_rate, resilience_weight, retain_weight
from .recipe import descend, outer_gradient
from .setup import Setup
from .terms import Term


def train_step(setup: Setup, step: int) -> StepRecord:
    """Take outer step `step`, from 1: update θ along the gradient of the objective."""
    started, plan, θ = time.perf_counter(), setup.plan, setup.theta
    λ, μ, rate = resilience_weight(plan, step), retain_weight(plan, step), learning_rate(plan, step)
    harm, retain = setup.feed.harm(step), setup.feed.retain(step)
    users = setup.feed.configurations(step) if λ > 0 else []
    total, terms = outer_gradient(
        θ, harm.loss, retain, setup.users.groups(step, users),
        λ=λ, μ=μ, ν=plan.retain_after_weight, J=len(users),
        scale=setup.denoiser.loss_scale, compute=setup.compute,
    )  # fmt: skip
    norm = norm_and_clip(list(total.values()), plan.gradient_norm)
    values = {name: term.value for name, term in terms.items()}
    require_finite(setup, step, values | {"gradient": norm})
    simulations = _regulate(setup, harm, terms)
    descend(θ, total, setup.optimiser, learning_rate=rate)
    setup.constrain()
    setup.agree()  # ranks on unlike hardware must not drift apart
    return StepRecord(
        step=step,
        harm=float(values["harm"]),
        retain=float(values["retain"]),
        resilience_weight=λ,
        retain_weight=μ,
        learning_rate=rate,
        gradient_norm=float(norm),
        seconds=time.perf_counter() - started,
        simulations=simulations,
    )


def rehearse_training(setup: Setup) -> None:
    """Take a step as it is in the middle of a run, when AdamW has its moments."""
    for tensor in setup.theta.values():
        tensor.grad = torch.zeros_like(tensor)
    setup.optimiser.step()
    setup.optimiser.zero_grad(set_to_none=True)
    train_step(setup, 1)


def require_finite(setup: Setup, step: int, values: Mapping[str, Tensor]) -> None:
    """Raise a DivergenceError that names the values which are not finite, and what to change."""
    bad = [name for name, value in values.items() if not bool(torch.isfinite(value))]
    if not bad:
        return
    knobs = (
        "lower the learning_rate or steps of that fine-tuning configuration"
        if any(name.startswith("harm after") for name in bad)
        else f"lower learning_rate ({setup.plan.learning_rate:g}) or harm.cap, raise "
        "retain_weight, or use precision fp32 or bf16"
    )
    raise DivergenceError(
        f"outer step {step}: {', '.join(bad)} is not finite; the state after step {step - 1} is "
        f"kept: {knobs}"
    )


def _regulate(setup: Setup, harm: Harm, terms: Mapping[str, Term]) -> tuple[SimulationRecord, ...]:
    """Record the users' runs, and let the regulator adjust their lengths by q."""
    now = terms["harm"].value
    users = [term.user for term in terms.values() if term.user is not None]
    records = [
        _record(user, float(remaining_harm(user.result.harm_after, now, harm.base)))
        for user in users
    ]
    for user, record in zip(users, records, strict=True):
        warning = setup.regulator.update(user.fine_tune, record.q)
        if warning:
            setup.warn(warning)
    return tuple(records)


def _record(user: SimulatedUser, q: float) -> SimulationRecord:
    run, result = user.run, user.result
    solution, kept = result.solution, result.retain_after
    return SimulationRecord(
        name=user.fine_tune.name,
        steps=run.steps,
        harm_after=float(result.harm_after),
        q=q,
        move=float(run.move),
        first_loss=float(run.first_loss),
        last_loss=float(run.last_loss),
        residual=solution.residual if solution else None,
        curvature=solution.curvature if solution else None,
        retain_after=None if kept is None else float(kept),
        products=solution.products if solution else 0,
        skipped=result.skipped,
    )
