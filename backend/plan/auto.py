"""Fields of a plan that may be `auto`: the device decides about them when a run begins.

A run folder holds what was decided, so that a run continues in the same way on another device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .hardening import HardeningPlan

AUTO = "auto"
Auto = Literal["auto"]
# The fields, and what a CPU makes of them: what they were before they could be `auto`.
ON_CPU: dict[str, Any] = {"precision": "fp32", "users_at_once": 1, "micro_batch": 0}


def undecided(plan: HardeningPlan) -> tuple[str, ...]:
    """Return the names of the fields that are still `auto`."""
    return tuple(name for name in ON_CPU if getattr(plan, name) == AUTO)


def decided(plan: HardeningPlan, **values: Any) -> HardeningPlan:
    """Replace every `auto` by its entry in `values`, or by what a CPU makes of it."""
    names = undecided(plan)
    return replace(plan, **{name: (ON_CPU | values)[name] for name in names}) if names else plan


def decided_as(plan: HardeningPlan, stored: HardeningPlan) -> HardeningPlan:
    """Replace every `auto` by what the stored plan has, which a run began with."""
    return decided(plan, **{name: getattr(stored, name) for name in ON_CPU})


def micro_batch_of(plan: HardeningPlan) -> int:
    """Return the images of one pass, 0 for whole batches; of an undecided plan as on a CPU."""
    return 0 if plan.micro_batch == AUTO else plan.micro_batch


def users_at_once_of(plan: HardeningPlan) -> int:
    """Return the users that share a pass; of an undecided plan as on a CPU."""
    return 1 if plan.users_at_once == AUTO else plan.users_at_once
