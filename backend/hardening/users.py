"""Simulates the users of an outer step: alone, or several side by side in passes that they share.

The plan decides which users share passes (`users_at_once`), not the ranks. So several processes
round as one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..bilevel.hypergradient import LossAfter, hypergradient
from ..bilevel.inner_loop import inner_loops
from ..bilevel.simulate import SimulatedUser, trained
from ..bilevel.vectors import Loss, Terms, assign
from ..plan.auto import users_at_once_of
from ..plan.fine_tune import FineTuneConfig
from ..plan.hardening import HardeningPlan
from .feed import Feed
from .recipe import simulate_user
from .regulator import Regulator
from .terms import Group

Numbered = Sequence[tuple[int, FineTuneConfig]]  # users with their places among the step's
# Called after each inner step and before each gradient of a solve, so that a stop takes effect
# within one gradient: outer step, inner step, of how many, names of the users. May raise.
OnInnerStep = Callable[[int, int, int, str], None]


@dataclass(frozen=True, slots=True)
class Users:
    """Simulates the users of any outer step of a plan."""

    denoiser: Any  # an AdaptedDenoiser where a method simulates anybody
    plan: HardeningPlan
    feed: Feed
    regulator: Regulator
    on_inner_step: OnInnerStep

    def groups(self, step: int, chosen: Sequence[FineTuneConfig]) -> list[Group]:
        """Split the step's users into groups, in the order of `chosen`."""
        numbered, size = list(enumerate(chosen)), users_at_once_of(self.plan)
        return [
            Group(
                sum(self.regulator.steps(user) + 1.0 for _, user in group),
                partial(self._together if len(group) > 1 else self._alone, step, group),
            )
            for group in (numbered[i : i + size] for i in range(0, len(numbered), size))
        ]

    def _alone(self, step: int, group: Numbered, after: LossAfter) -> list[SimulatedUser]:
        ((number, user),) = group
        plan, feed, steps = self.plan, self.feed, self.regulator.steps(user)

        def report(inner: int) -> None:
            self.on_inner_step(step, inner, steps, user.name)

        def L_ft(inner: int) -> Loss:
            """Return the loss of an inner step, once the step before it is reported."""
            if inner == 0:
                report(steps)
                return _reporting(feed.fine_tuning(step, number, 0, user), partial(report, steps))
            if inner > 1:
                report(inner - 1)
            return feed.fine_tuning(step, number, inner, user)

        with trained(self.denoiser, plan.simulate, user, feed.seed(step, number)) as phi:
            found = simulate_user(
                self.denoiser.theta, phi, L_ft, after, user, steps, plan.solver,
                γ=_gamma(plan), scale=self.denoiser.loss_scale,
            )  # fmt: skip
        return [found]

    def _together(self, step: int, group: Numbered, after: LossAfter) -> list[SimulatedUser]:
        """Simulate users that move θ itself (`shared`); their inner steps share passes."""
        plan, feed, denoiser = self.plan, self.feed, self.denoiser
        users = [user for _, user in group]
        steps = [self.regulator.steps(user) for user in users]
        names, longest = ", ".join(user.name for user in users), max(steps)

        def report(inner: int) -> None:
            self.on_inner_step(step, inner, longest, names)

        with denoiser.side_by_side(len(users)) as copies:

            def terms(inner: int, at_work: Sequence[int]) -> Sequence[Terms]:
                return feed.side_by_side(
                    step, [group[place] for place in at_work], inner,
                    lambda order: copies.seat([(at_work[place], n) for place, n in order]),
                )  # fmt: skip

            runs = inner_loops(
                copies.users, terms, users, steps,
                gamma=_gamma(plan), scale=denoiser.loss_scale, on_step=report,
            )  # fmt: skip
        found = []
        for place, ((number, user), run) in enumerate(zip(group, runs, strict=True)):
            loss = _reporting(feed.fine_tuning(step, number, 0, user), partial(report, run.steps))
            with trained(denoiser, plan.simulate, user, 0) as theta:
                assign(theta, copies.users[place])
                result = hypergradient(
                    after, loss, theta, theta, plan.solver, scale=denoiser.loss_scale
                )
            found.append(SimulatedUser(user, run, result))
        return found


def _gamma(plan: HardeningPlan) -> float | None:
    """Return the radius of the proximal term in users' losses; None where they have none."""
    return plan.solver.gamma if plan.proximal else None


def _reporting(loss: Loss, report: Callable[[], None]) -> Loss:
    """Report before each evaluation, which may be stopped there."""

    def value() -> Tensor:
        report()
        return loss()

    return value
