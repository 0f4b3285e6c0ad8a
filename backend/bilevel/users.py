"""The simulated users of an outer step, as work that ranks can share out.

Which users share passes is the plan's matter (`users_at_once`), not the ranks': so several
processes round as one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ..adapter.apply import AdaptedDenoiser
from ..plan.fine_tune import FineTuneConfig
from ..plan.hardening import HardeningPlan
from .feed import Feed
from .objective import Harm
from .regulator import Regulator
from .simulate import SimulatedUser, simulate_user, simulate_users
from .vectors import Loss

Told = Callable[[int, int, int, str], None]  # outer step, inner step, of how many, whose


@dataclass(frozen=True, slots=True)
class Users:
    """Simulates the users of any outer step, and tells each of their steps."""

    denoiser: AdaptedDenoiser
    plan: HardeningPlan
    feed: Feed
    regulator: Regulator
    tell: Told

    def tasks(
        self, step: int, chosen: Sequence[FineTuneConfig], harm: Harm, retain: Loss, keep: float
    ) -> Iterator[tuple[float, Callable[[], list[SimulatedUser]]]]:
        """(cost, work) of each group of users, in the order of `chosen`.

        keep: weight of L_retain at θ* relative to L_harm.
        """
        numbered = list(enumerate(chosen))
        size = self.plan.users_at_once
        for start in range(0, len(numbered), size):
            group = numbered[start : start + size]
            cost = sum(self.regulator.steps(user) + 1.0 for _, user in group)
            yield cost, partial(self._simulate, step, group, harm, retain, keep)

    def _simulate(
        self,
        step: int,
        group: Sequence[tuple[int, FineTuneConfig]],
        harm: Harm,
        retain: Loss,
        keep: float,
    ) -> list[SimulatedUser]:
        users = [user for _, user in group]
        steps = [self.regulator.steps(user) for user in users]
        names, feed, longest = ", ".join(user.name for user in users), self.feed, max(steps)
        if len(group) > 1:
            return simulate_users(
                self.denoiser, self.plan, users, steps,
                terms=lambda inner, at_work, seat: feed.side_by_side(
                    step, [group[place] for place in at_work], inner, seat
                ),
                frozen=lambda place: feed.fine_tuning(step, group[place][0], 0, users[place]),
                harm=harm, retain=retain, retain_weight=keep,
                on_step=lambda inner: self.tell(step, inner, longest, names),
            )  # fmt: skip
        ((number, user),) = group
        found = simulate_user(
            self.denoiser, self.plan, user, longest,
            loss=lambda inner: feed.fine_tuning(step, number, inner, user),
            harm=harm, retain=retain, retain_weight=keep, seed=feed.seed(step, number),
            on_step=lambda inner: self.tell(step, inner, longest, names),
        )  # fmt: skip
        return [found]
