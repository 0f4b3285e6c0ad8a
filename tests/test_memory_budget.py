"""The memory planner's proposals: the cheapest change that meets a budget, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes_memory import THREE, TINY, USER, hardening_plan

from resalign.backend.errors import ConfigError
from resalign.backend.memory import plan as planner
from resalign.backend.memory.plan import plan_memory
from resalign.backend.memory.trace import (
    Trace,
)
from resalign.backend.memory.words import table
from resalign.backend.numerics.byte_sizes import GIB
from resalign.backend.plan.auto import ON_CPU, decided
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.solver import SolverConfig


def test_without_a_budget_the_plan_stays_and_the_parts_add_up():
    plan = hardening_plan()
    found = plan_memory(plan, "sd1", configs=TINY, resolution=128)
    assert found.plan == decided(plan) and found.changes == {} and found.fits is None
    assert found.peak == max(found.weights + found.state + found.activations, found.encoding)
    assert found.total == found.peak + found.margin and found.margin > planner.CONTEXT
    assert found.encoding > found.weights
    assert "not measured on a GPU" in found.words[0]


@pytest.fixture
def made_up(monkeypatch):
    """Traces by a formula in place of those of a network: what is asked for here is the choice."""

    def step(plan, *_):
        batch = max(plan.forget_batch, plan.fine_tunes[0].batch)
        samples = min(batch * plan.users_at_once, plan.micro_batch or batch * plan.users_at_once)
        activations = samples * (0.25 if plan.gradient_checkpointing else 1.0)
        activations *= 0.5 if plan.precision != "fp32" else 1.0
        exact = plan.solver.method != "first_order" and plan.solver.products == "exact"
        return Trace(2 * GIB, GIB, round(activations * (5 if exact else 1) * GIB))

    monkeypatch.setattr(planner, "_step", step)
    monkeypatch.setattr(planner, "_encoding_of", lambda *_: Trace(2 * GIB, GIB, 0))


def ask(plan: HardeningPlan, budget: float | None = None):
    return plan_memory(plan, "sd1", configs=TINY, resolution=128, budget=budget)


EIGHT = {"forget_batch": 8, "fine_tunes": (replace(USER, batch=8),)}

EXACT = SolverConfig(method="richardson", products="exact")


@pytest.mark.parametrize(
    ("budget", "changes"),
    [
        (13.2, {}),
        (6.4, {"micro_batch": 2}),
        (5.4, {"micro_batch": 1}),
        (4.6, {"micro_batch": 2, "gradient_checkpointing": True}),
        (4.3, {"micro_batch": 1, "gradient_checkpointing": True}),
        (4.2, {"micro_batch": 1, "gradient_checkpointing": True, "precision": "bf16"}),
    ],
)
def test_a_budget_is_met_with_the_cheapest_change_that_is_enough(made_up, budget, changes):
    """Nothing, then micro-batches, then checkpointing, then bf16."""
    plan = hardening_plan(**EIGHT)
    found = ask(plan, budget)
    assert found.fits and found.total <= budget * GIB and found.changes == changes
    assert found.plan == replace(plan, **{**ON_CPU, **changes})
    for name in changes:
        assert any(word.startswith(f"{name} = ") for word in found.words)


@pytest.mark.parametrize(
    ("budget", "changes"),
    [
        (32.3, {}),
        (13.2, {"users_at_once": 1}),
        (6.4, {"users_at_once": 1, "micro_batch": 2}),
    ],
)
def test_users_share_passes_where_there_is_room(made_up, budget, changes):
    users = tuple(replace(user, batch=8) for user in THREE)
    plan = hardening_plan(
        users_at_once=3, configurations_per_step=3, fine_tunes=users, forget_batch=8
    )
    assert ask(plan, budget).changes == changes


def test_each_trial_is_told_before_it_is_made_and_can_be_stopped(made_up):
    tried = []
    found = plan_memory(hardening_plan(**EIGHT), "sd1", configs=TINY, resolution=128, budget=4.3,
                        on_try=tried.append)  # fmt: skip
    assert tried[0] == "as it is" and len(tried) > 2
    assert "micro_batch = 1, gradient_checkpointing = true" in tried
    assert found.asked["total"] > found.total == found.parts["total"]

    def stop(changes):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        plan_memory(hardening_plan(), "sd1", configs=TINY, resolution=128, on_try=stop)


def test_the_table_has_a_column_for_the_changes_where_there_are_any(made_up):
    plain = table(ask(hardening_plan(**EIGHT), 12.9))
    assert len(plain) == 6 and plain[0].split()[-2:] == ["2.0", "GiB"]
    changed = table(ask(hardening_plan(**EIGHT), 5.1))
    assert len(changed) == 7 and changed[0].split() == ["as", "it", "is", "changed"]
    assert changed[-1].startswith("peak") and len(changed[-1].split()) == 5


def test_exact_products_are_given_up_only_where_nothing_else_helps(made_up):
    plan = hardening_plan(**EIGHT, solver=EXACT)
    assert ask(plan, 9.5).changes == {"micro_batch": 1}
    found = ask(plan, 4.7)
    assert found.changes["solver.products"] == "finite_difference"
    assert "precision" not in found.changes


def test_what_does_not_fit_is_told_with_the_smallest_setting(made_up):
    found = ask(hardening_plan(**EIGHT), 2.0)
    assert found.fits is False
    assert found.plan.gradient_checkpointing and found.plan.micro_batch == 1
    assert any("nothing fits" in word for word in found.words)


def test_a_plan_that_trains_all_weights_is_not_offered_half_precision(made_up):
    assert ask(hardening_plan(simulate="full"), 2.0).plan.precision == "fp32"


def test_unknown_families_are_refused():
    with pytest.raises(ConfigError, match="sd1, sd2, sdxl"):
        plan_memory(hardening_plan(), "flux")
