"""Decides how many users and images share a pass, by the memory that is free.

The first candidate that is predicted to fit is taken: all users of a step side by side, then users
in turn with whole batches, then micro-batches. All find the same up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ..plan.auto import AUTO, decided, undecided
from ..plan.field import field_of
from ..plan.hardening import HardeningPlan
from ..plan.methods import FACTS, changes_all_weights, methods_of
from .prediction import MemoryPlan

Predict = Callable[[HardeningPlan], MemoryPlan]


def fit_passes(
    plan: HardeningPlan, predict: Predict, room: int, *, ranks: int = 1
) -> tuple[HardeningPlan, MemoryPlan]:
    """Return the plan with nothing left to decide, and its predicted memory.

    Args:
        plan: its precision is decided.
        predict: the memory of a decided plan; takes seconds, and is called for each candidate.
        room: bytes that are free. Where no candidate fits, the smallest is returned.
        ranks: processes that share the users of a step.
    """
    chosen = found = None
    for candidate in candidates(plan, ranks):
        chosen, found = candidate, predict(candidate)
        if found.total <= room:
            break
    assert chosen is not None and found is not None
    return chosen, found


def candidates(plan: HardeningPlan, ranks: int = 1) -> Iterator[HardeningPlan]:
    """Yield what a plan's `auto` may become, from the quickest to the smallest."""
    if not undecided(plan):
        yield plan
        return
    users = [1] if plan.users_at_once == AUTO else [plan.users_at_once]
    whole = plan.micro_batch in (AUTO, 0)
    most = field_of(HardeningPlan, "users_at_once").range
    assert most is not None and not isinstance(most.high, str)
    together = min(math.ceil(plan.configurations_per_step / ranks), int(most.high))
    if plan.users_at_once == AUTO and whole and together > 1 and _share_passes(plan):
        users = [together, 1]
    sizes = [plan.micro_batch]
    if plan.micro_batch == AUTO:
        sizes = [0, *(size for size in (2, 1) if size < largest_batch(plan))]
    for count in users:
        for size in sizes:
            if count == 1 or size == 0:
                yield decided(plan, users_at_once=count, micro_batch=size)


def largest_batch(plan: HardeningPlan) -> int:
    """Return the images of the largest batch of a plan."""
    batches = [plan.forget_batch, plan.retain_batch, *(user.batch for user in plan.fine_tunes)]
    if changes_all_weights(plan):
        batches.append(plan.distil.batch)
    return max(batches)


def _share_passes(plan: HardeningPlan) -> bool:
    simulates = any(FACTS[method].simulates_users for method in methods_of(plan))
    return plan.simulate == "shared" and simulates and bool(plan.fine_tunes)
