"""How much of the concepts a run has removed, by its harm losses: averages, and never their noise.

A harm loss is that of one step's batch, at noise levels drawn for it, so that it differs from step
to step by more than a short run removes. So averages of several steps are compared: the latest
ones with the first ones. Their difference counts where it is larger than chance makes it, by the
spread of the losses from one step to the next, which removal hardly widens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .methods import FACTS

NOTHING = 0.05  # share unlearned below which nothing was removed
_AVERAGED = 10  # steps
_SURE = 3.0  # standard errors; an idle run of 20 steps exceeds them once in 200, of 300 in 20


def averaged(steps: int) -> int:
    """Return how many steps an average of a run of so many takes: the first, and the latest."""
    return max(1, min(_AVERAGED, steps // 2))


def harm_scale(plan: Any, start: float) -> tuple[float, float] | None:
    """Return the harm loss at 0 % and at 100 % unlearned; None where no step tells the former.

    start: average harm of the first steps. It is the original's only where training begins with
    them: an edit in one step measures its own result, and a stage before has changed the model.
    """
    facts = FACTS[plan.method]
    if facts.single_step or facts.distils or plan.before:
        return None
    end = -plan.harm.cap if plan.harm.loss == "ascent" and plan.method != "redirect" else 0.0
    return (start, end) if start > end else None


def has_scale(plan: Any) -> bool:
    """Return whether the losses of a plan's run tell how much is unlearned."""
    return harm_scale(plan, math.inf) is not None


def chance(harms: Sequence[float], window: int) -> float:
    """Return how far two averages of `window` of these losses differ by chance at most."""
    jumps = [(after - before) ** 2 for before, after in pairwise(harms)]
    if not jumps:
        return 0.0
    return _SURE * math.sqrt(sum(jumps) / len(jumps) / 2) * math.sqrt(2 / window)


def shares(harms: Sequence[float], window: int, scale: tuple[float, float]) -> list[float]:
    """Return the share unlearned, 0 to 1, at each step from `window` on: an average of so many.

    It is 0 until a fall of the harm loss is larger than chance makes it (`chance`), and then as
    measured, since an average that wavers is no sign that the concepts are back.
    """
    noise, seen, found = chance(harms, window), False, []
    for at in range(window, len(harms) + 1):
        removed = scale[0] - mean(harms[at - window : at])
        share = removed / (scale[0] - scale[1])
        seen = seen or (removed > noise and share >= NOTHING)
        found.append(min(1.0, share) if seen and share >= NOTHING else 0.0)
    return found


def share_removed(plan: Any, harms: Sequence[float]) -> float | None:
    """Return the share of the concepts that is unlearned, 0 to 1, after outer steps with these harm
    losses; None where the losses do not tell it (see `harm_scale`)."""
    harms = [harm for harm in harms if math.isfinite(harm)]
    if len(harms) < 2:
        return None
    window = averaged(min(len(harms), plan.outer_steps))
    scale = harm_scale(plan, mean(harms[:window]))
    return None if scale is None else shares(harms, window, scale)[-1]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
