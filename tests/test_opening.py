"""A run decides and says things before its first step, and watches a card's memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fakes_card
import pytest

from resalign.backend.jobs import harden as harden_module
from resalign.backend.jobs.harden import _decided, _watched
from resalign.backend.jobs.opening import TimeTeller, decide, memory_warnings, opening_lines
from resalign.backend.jobs.spill import CardMemory, SpillWatch, spilled
from resalign.backend.memory.fit import candidates, fit_passes
from resalign.backend.memory.prediction import MemoryPlan
from resalign.backend.numerics.byte_sizes import GIB
from resalign.backend.parallel.ranks import ALONE
from resalign.backend.plan.auto import ON_CPU
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.job import Job
from resalign.backend.plan.solver import SolverConfig
from resalign.backend.progress import Progress

USERS = tuple(
    FineTuneConfig(name=f"user {n}", learning_rate=1e-4, steps=5, batch=4) for n in range(3)
)
FOLDER = ImageSet(folder="x")


def plan(**changes) -> HardeningPlan:
    fields = {
        "concepts": (Concept("weapons", ("a gun",)),), "fine_tunes": USERS, "outer_steps": 10,
        "configurations_per_step": 3, "warm_up_steps": 0, "forget_set": FOLDER,
        "retain_set": FOLDER,
    }  # fmt: skip
    return HardeningPlan(**(fields | changes))


def needs(asked: HardeningPlan) -> MemoryPlan:
    """One GiB for each image of a pass, and two for the weights."""
    images = asked.micro_batch or 4 * asked.users_at_once
    return MemoryPlan(
        plan=asked, weights=2 * GIB, state=0, activations=images * GIB, encoding=0, margin=0,
        changes={},
    )  # fmt: skip


def passes(found: HardeningPlan) -> tuple:
    return found.users_at_once, found.micro_batch


@pytest.mark.parametrize(
    ("room", "expected"),
    [(14, (3, 0)), (13.9, (1, 0)), (6, (1, 0)), (5, (1, 2)), (3.5, (1, 1)), (1, (1, 1))],
)
def test_the_first_that_fits_is_taken_and_the_smallest_where_nothing_does(room, expected):
    found, needed = fit_passes(plan(precision="bf16"), needs, round(room * GIB))
    assert passes(found) == expected and needed.plan == found


@pytest.mark.parametrize(
    ("changes", "ranks", "expected"),
    [
        ({}, 1, [(3, 0), (1, 0), (1, 2), (1, 1)]),
        ({}, 2, [(2, 0), (1, 0), (1, 2), (1, 1)]),  # of three users one rank has two
        ({"simulate": "adapter"}, 1, [(1, 0), (1, 2), (1, 1)]),
        ({"fine_tunes": (), "configurations_per_step": 1}, 1, [(1, 0), (1, 2), (1, 1)]),
        ({"micro_batch": 0}, 1, [(3, 0), (1, 0)]),
        ({"micro_batch": 2}, 1, [(1, 2)]),
        ({"users_at_once": 1}, 1, [(1, 0), (1, 2), (1, 1)]),
        ({"users_at_once": 2}, 1, [(2, 0)]),
        ({"users_at_once": 2, "micro_batch": 0}, 1, [(2, 0)]),
    ],
)
def test_only_what_is_auto_is_decided(changes, ranks, expected):
    asked = plan(precision="bf16", **changes)
    assert [passes(one) for one in candidates(asked, ranks)] == expected


def test_on_a_cpu_nothing_is_predicted_and_all_stays_as_it_was():
    def never(asked):
        raise AssertionError

    assert decide(plan(), "cpu", never) == (plan(**ON_CPU), None)


def test_a_card_decides_by_what_is_free_and_what_this_process_holds(monkeypatch):
    fakes_card.put_in(monkeypatch, free=10.0, held=4.0)
    found, needed = decide(plan(), "cuda", needs)
    assert (found.precision, *passes(found)) == ("bf16", 3, 0)
    assert needed is not None and needed.total == 14 * GIB


def test_a_job_begins_with_what_was_decided(monkeypatch):
    fakes_card.put_in(monkeypatch, free=6.0)
    monkeypatch.setattr(harden_module, "memory_needed", lambda info, asked: needs(asked))
    job = Job(checkpoint="a.safetensors", output="b.safetensors", plan=plan())
    report = SimpleNamespace(device="cuda", info=object())
    found, needed = _decided(job, report, ALONE)  # type: ignore[arg-type]
    assert found == replace(
        job, device="cuda", plan=plan(precision="bf16", users_at_once=1, micro_batch=0)
    )
    assert needed is not None and needed.total == 6 * GIB


def test_three_lines_tell_card_arithmetic_and_what_is_expected(monkeypatch):
    """Passes of a step: 3·4 + 4·4 at θ, and for each of 3 users 3·(22·4 + 4) with 22 inner steps,
    halfway between the regulator's 4 and 40."""
    fakes_card.put_in(monkeypatch)
    decided = plan(precision="bf16", users_at_once=3, micro_batch=0)
    assert opening_lines(decided, "cuda", needs(decided)) == [
        "device      RTX 3090, 24.0 GiB, 22.0 GiB free",
        "precision   bf16, users at once: 3, whole batches",
        "expected    14.0 GiB at the peak (predicted); the time is known after the first step "
        "(8,560 passes of the denoiser)",
    ]


@pytest.mark.parametrize(
    ("solver", "expected"),
    [("first_order", "fp32 with TF32"), ("richardson", "fp32")],  # by finite differences
)
def test_tf32_is_told_where_the_solve_bears_it(monkeypatch, solver, expected):
    fakes_card.put_in(monkeypatch)
    asked = plan(**(ON_CPU | {"solver": SolverConfig(method=solver)}))
    assert opening_lines(asked, "cuda", None)[1].split(", ")[0] == f"precision   {expected}"


def test_on_a_cpu_the_lines_promise_no_memory_and_no_time():
    card, arithmetic, expected = opening_lines(plan(**ON_CPU), "cpu", None)
    assert card.startswith("device      cpu, ") and arithmetic == "precision   fp32"
    assert "GiB" not in expected and "the time is known after the first step" in expected


def test_steps_of_an_earlier_session_tell_the_time_at_once():
    records = [{"step": n, "seconds": 60.0} for n in range(1, 6)]
    assert opening_lines(plan(**ON_CPU), "cpu", None, records)[2].endswith(
        "about 5 min left, by the steps before"
    )


def done(step: int, **values: float) -> Progress:
    return Progress(stage="harden", step=step, total=10, values=values)


def test_the_time_is_told_once_after_the_first_measured_step():
    told: list[list[str]] = []
    now = iter([0.0, 30.0, 60.0, 120.0])
    tell = TimeTeller(plan(**ON_CPU), (), told.append, lambda: next(now))
    tell(Progress(stage="harden", step=0, total=10))
    tell(Progress(stage="harden", step=0, total=10, micro_step=1, micro_total=2))
    assert told == []
    tell(done(1, harm=1.0))
    tell(done(2, harm=1.0))
    assert told == [["expected    about 9 min left, by the steps so far"]]


def test_a_run_that_may_not_fit_is_told_before_it_begins(monkeypatch):
    fakes_card.put_in(monkeypatch, total=8.0, free=7.0)
    wanted = needs(plan(precision="bf16", users_at_once=1, micro_batch=0))
    assert memory_warnings(wanted, "cuda") == []
    wanted = replace(wanted, activations=6 * GIB)
    (said,) = memory_warnings(wanted, "cuda")
    assert said.startswith("about 8.0 GiB are needed and 7.0 GiB are free on cuda: close other")
    dense = replace(wanted, plan=replace(wanted.plan, method="distil"))
    (said,) = memory_warnings(dense, "cuda")
    assert "a preset that trains an adapter, such as balanced" in said


@pytest.mark.parametrize(
    ("total", "free", "held", "expected"),
    [
        (8, 4, 3, 0),  # all of the growth is on the card
        (8, 0.1, 6.9, 0),  # full, but nothing beyond
        (8, 0.1, 9.0, 2.1),  # grew by 9, and 6.9 of it are gone from the card
        (8, 3.0, 9.0, 1.0),  # more than the card has, whatever is free now
        (8, 3.0, 5.0, 0),  # another program gave memory back
    ],
)
def test_memory_beyond_the_card_is_noticed(total, free, held, expected):
    began = CardMemory(8 * GIB, 7 * GIB, 0)
    now = CardMemory(*(round(size * GIB) for size in (total, free, held)))
    assert spilled(began, now) == pytest.approx(expected * GIB, abs=GIB / 50)


def test_a_run_that_spills_is_told_once_with_what_to_do(monkeypatch):
    card = fakes_card.put_in(monkeypatch, total=8.0, free=7.0)
    told: list[list[str]] = []
    watch = SpillWatch("cuda", told.append)
    watch(done(1, harm=1.0))
    card.free, card.held = 0.1, 9.0
    watch(Progress(stage="harden", step=1, total=10, micro_step=1, micro_total=2))
    assert told == []  # looked at after whole steps
    watch(done(2, harm=1.0))
    watch(done(3, harm=1.0))
    ((said,),) = told
    assert "about 2.1 GiB" in said and "Sysmem Fallback" in said and "micro_batch = 1" in said


def test_a_cpu_is_not_watched():
    SpillWatch("cpu", pytest.fail)(done(1, harm=1.0))


def test_a_job_on_a_card_says_its_lines_and_warnings_and_keeps_reporting(monkeypatch):
    card = fakes_card.put_in(monkeypatch, total=8.0, free=3.0)
    told: list[list[str]] = []
    reports: list[Progress] = []
    decided = plan(precision="bf16", users_at_once=1, micro_batch=0)
    job = Job(checkpoint="a.safetensors", output="b.safetensors", plan=decided, device="cuda")
    run = SimpleNamespace(records=lambda: [], steps_saved=0, path=Path("run"))
    watch = _watched(job, run, needs(decided), reports.append, told.append)  # type: ignore[arg-type]
    assert [len(lines) for lines in told] == [3, 1]
    assert told[1][0].startswith("warning: about 6.0 GiB are needed and 3.0 GiB are free")
    card.free, card.held = 0.0, 9.0
    watch(done(1, harm=1.0))
    assert len(reports) == 1 and any("system memory" in line for line in told[-1])
