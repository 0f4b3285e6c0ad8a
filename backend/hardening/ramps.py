"""Schedules of λ, μ and the outer learning rate over the run."""

from __future__ import annotations

import math

from ..plan.hardening import HardeningPlan
from ..plan.ramp import Ramp

_SLOPE = 10.0  # of the published sigmoid ramp


def ramp_at(weight: float | Ramp, done: float) -> float:
    """Return the weight after a share `done` (0 to 1) of its steps."""
    if not isinstance(weight, Ramp):
        return float(weight)
    if done <= weight.begin or weight.until <= weight.begin:
        return weight.start if done <= weight.begin else weight.end
    share = min(1.0, (done - weight.begin) / (weight.until - weight.begin))
    if weight.shape == "sigmoid":
        low, high = 1 / (1 + math.exp(_SLOPE / 2)), 1 / (1 + math.exp(-_SLOPE / 2))
        share = (1 / (1 + math.exp(-_SLOPE * (share - 0.5))) - low) / (high - low)
    return weight.start + (weight.end - weight.start) * share


def resilience_weight(plan: HardeningPlan, step: int) -> float:
    """Return λ at outer step 1 to `outer_steps`: 0 in the warm-up and without simulated users."""
    after = step - plan.warm_up_steps
    if after <= 0 or not plan.fine_tunes:
        return 0.0
    return ramp_at(plan.resilience_weight, (after - 1) / max(1, plan.resilience_steps - 1))


def retain_weight(plan: HardeningPlan, step: int) -> float:
    """Return μ at outer step 1 to `outer_steps`."""
    return ramp_at(plan.retain_weight, (step - 1) / max(1, plan.outer_steps - 1))


def learning_rate(plan: HardeningPlan, step: int) -> float:
    """Return the rate: constant in the warm-up, then falling linearly to `final_learning_rate`.

    A final rate of 0 means that it does not fall.
    """
    if not plan.final_learning_rate or step <= plan.warm_up_steps:
        return plan.learning_rate
    done = (step - plan.warm_up_steps) / max(1, plan.resilience_steps)
    return plan.learning_rate + (plan.final_learning_rate - plan.learning_rate) * done
