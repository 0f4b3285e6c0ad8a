"""Stages: the methods that run before a plan's own.

A stage is a plan of its own, run in a folder of its own below the run's. The next stage starts from
the adapter that it left, which stays as it is while the next trains its own beside it. The run's
result is all of them as one adapter, whose rank is the sum of theirs.
"""

from __future__ import annotations

from dataclasses import replace

from ..plan.hardening import HardeningPlan
from ..run.rebuild import stage_name


def stage_plans(plan: HardeningPlan) -> list[tuple[str, HardeningPlan]]:
    """Return the name and plan of each stage before the plan's own method, in order."""
    found = []
    for number, stage in enumerate(plan.before, start=1):
        adapter = replace(plan.adapter, rank=stage.rank) if stage.rank else plan.adapter
        own = replace(
            plan, method=stage.method, before=(), adapter=adapter, outer_steps=stage.steps,
            warm_up_steps=min(plan.warm_up_steps, stage.steps), seed=plan.seed + number,
        )  # fmt: skip
        found.append((stage_name(number, stage.method), own))
    return found
