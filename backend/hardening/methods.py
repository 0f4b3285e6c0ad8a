"""The hardening methods: what each makes of a plan, prepares, and does in an outer step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..plan.hardening import HardeningPlan
from ..plan.methods import FACTS, MethodFacts
from ..plan.stages import HardeningMethod
from ..run.records import StepRecord
from .closed_form import edit_adapter
from .distil import distil_step, rehearse_distillation
from .erase.step import erase_step, rehearse_erasure
from .projection import largest_bases, retain_projection
from .setup import Setup
from .training import rehearse_training, require_finite, train_step

_MOST_LOST = 0.05  # share of a closed form that its rank may leave out without a warning


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How one method hardens.

    facts: what plans, checks and reports need to know of it.
    read: the plan with the fields that the method decides itself.
    prepare: called once with the steps already done, after θ is restored.
    step: takes an outer step, from 1.
    held: for the memory planner, what `prepare` or a step leaves on the device at most.
    rehearse: for the memory planner, the step that takes most memory.
    """

    facts: MethodFacts
    read: Callable[[HardeningPlan], HardeningPlan] = lambda plan: plan
    prepare: Callable[[Setup, int], None] = lambda setup, done: None
    step: Callable[[Setup, int], StepRecord] = train_step
    held: Callable[[Setup], list[Tensor]] = lambda setup: []
    rehearse: Callable[[Setup], object] = rehearse_training


def read_plan(plan: HardeningPlan) -> tuple[Method, HardeningPlan]:
    """Return the plan's own method, and the plan as that method reads it.

    What a method does not use is left out: the simulated users of one that simulates nobody.
    """
    method = METHODS[plan.method]
    if not method.facts.simulates_users:
        plan = replace(plan, fine_tunes=())
    return method, method.read(plan)


def _towards_anchors(plan: HardeningPlan) -> HardeningPlan:
    return replace(plan, harm=replace(plan.harm, loss="redirect"))


def _on_text_projections(plan: HardeningPlan) -> HardeningPlan:
    return replace(plan, adapter=replace(plan.adapter, targets=("cross_attention_kv",)))


def _distilled(plan: HardeningPlan) -> HardeningPlan:
    return replace(plan, weight_decay=0.0, learning_rate=plan.distil.learning_rate)


def _bases(setup: Setup) -> list[Tensor]:
    return largest_bases(setup.low_rank)


def _prepare_projection(setup: Setup, done: int) -> None:
    """Keep θ out of what retain samples use, after each update from now on."""
    projection = retain_projection(setup.low_rank, setup.feed, setup.plan.projection)
    setup.constrain = partial(projection.apply, setup.theta)
    if done == 0:  # a restored θ is projected already; again, its last bits would change
        setup.constrain()


def _edit_step(setup: Setup, step: int) -> StepRecord:
    """Set θ to the closed form, then measure harm and retention with it."""
    started, plan = time.perf_counter(), setup.plan
    lost = edit_adapter(setup.low_rank, plan, setup.data)
    setup.agree()
    if lost > _MOST_LOST:
        rank = plan.adapter.rank
        setup.warn(f"rank {rank} holds {1 - lost:.0%} of the edit: raise adapter.rank")
    harm, retain = _measure(setup, step)
    require_finite(setup, step, {"harm": harm, "retain": retain})
    return StepRecord(
        step=step, harm=float(harm), retain=float(retain), resilience_weight=0.0,
        retain_weight=plan.edit.retain_weight, learning_rate=0.0, gradient_norm=0.0,
        seconds=time.perf_counter() - started, simulations=(),
    )  # fmt: skip


@torch.no_grad()
def _measure(setup: Setup, step: int = 1) -> tuple[Tensor, Tensor]:
    """Return L_harm and L_retain at θ."""
    return setup.feed.harm(step).loss(), setup.feed.retain(step)()


def _rehearse_erasure(setup: Setup) -> None:
    rehearse_erasure(setup)
    _measure(setup)


METHODS: dict[HardeningMethod, Method] = {
    "resalign": Method(facts=FACTS["resalign"]),
    "redirect": Method(facts=FACTS["redirect"], read=_towards_anchors),
    "project": Method(facts=FACTS["project"], prepare=_prepare_projection, held=_bases),
    "closed_form": Method(
        facts=FACTS["closed_form"], read=_on_text_projections, step=_edit_step, rehearse=_measure
    ),
    "erase": Method(facts=FACTS["erase"], step=erase_step, rehearse=_rehearse_erasure),
    "distil": Method(
        facts=FACTS["distil"], read=_distilled, step=distil_step, rehearse=rehearse_distillation
    ),
}
