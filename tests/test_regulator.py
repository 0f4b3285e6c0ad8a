"""The regulator: when a simulated user's runs grow and shrink, and when it warns."""

from __future__ import annotations

import pytest
import torch

from resalign.backend.bilevel.losses import remaining_harm
from resalign.backend.hardening.regulator import Regulator
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.regulator import RegulatorConfig

USER = FineTuneConfig(name="user", steps=10)
OTHER = FineTuneConfig(name="other", steps=7)


def regulator(**changes) -> Regulator:
    settings = {"low": 0.6, "high": 0.8, "factor": 1.5, "min_steps": 4, "max_steps": 20}
    return Regulator(RegulatorConfig(**(settings | changes)))


def lengths(own: Regulator, *qs: float) -> list[int]:
    """Inner steps after each q."""
    found = []
    for q in qs:
        own.update(USER, q)
        found.append(own.steps(USER))
    return found


def test_runs_grow_by_the_factor_up_to_the_most():
    """10, 15, 22.5: the length is kept as a fraction and rounded where it is used."""
    assert lengths(regulator(factor=1.25, max_steps=18), 0.9, 0.9, 0.9, 0.9) == [12, 16, 18, 18]


def test_runs_shrink_by_the_factor_down_to_the_fewest():
    assert lengths(regulator(), 0.5, 0.1, -3.0, 0.5) == [7, 4, 4, 4]


@pytest.mark.parametrize("q", [0.6, 0.7, 0.8])
def test_between_the_bounds_and_on_them_a_run_stays_as_it_is(q):
    assert lengths(regulator(), q, q) == [10, 10]


def test_a_run_that_shrank_grows_back_from_the_bound_and_not_from_beyond():
    assert lengths(regulator(), 0.1, 0.1, 0.1, 0.9) == [7, 4, 4, 6]


def test_users_are_regulated_each_on_their_own():
    own = regulator()
    own.update(USER, 0.9)
    assert (own.steps(USER), own.steps(OTHER)) == (15, 7)


@pytest.mark.parametrize(("steps", "begins"), [(1, 4), (4, 4), (20, 20), (90, 20)])
def test_a_configurations_own_length_is_brought_into_the_bounds(steps, begins):
    assert regulator().steps(FineTuneConfig(name="user", steps=steps)) == begins


def test_switched_off_it_changes_no_length():
    own = regulator(enabled=False, max_steps=5)
    assert lengths(own, 0.9, 0.1) == [10, 10]


def test_a_user_at_full_length_who_does_not_relapse_is_a_warning_at_every_patience():
    own = regulator(max_steps=15, patience=2)
    warnings = [own.update(USER, 0.9) for _ in range(5)]
    assert [bool(warning) for warning in warnings] == [False, True, False, True, False]
    assert warnings[3] == (
        "simulated user user has not relapsed in 4 of its runs (q 0.90): there is nothing to "
        "harden against; raise its learning_rate, its concept_share, or regulator.max_steps"
    )


def test_the_warning_waits_until_runs_have_grown_to_the_most():
    """12.5 and 15.6 may still grow; 19.5 is rounded to the most."""
    own = regulator(factor=1.25, patience=1)
    assert [bool(own.update(USER, 0.9)) for _ in range(4)] == [False, False, True, True]


@pytest.mark.parametrize("q", [0.8, 0.7, 0.1])
def test_a_relapse_begins_the_count_anew(q):
    own = regulator(enabled=False, patience=2)
    assert not own.update(USER, 0.9)
    assert not own.update(USER, q)
    assert not own.update(USER, 0.9)
    assert own.update(USER, 0.9).endswith("its concept_share, or its steps")


def test_one_users_idleness_is_not_anothers():
    own = regulator(enabled=False, patience=2)
    assert not own.update(USER, 0.9)
    assert not own.update(OTHER, 0.9)
    assert own.update(USER, 0.9)


def test_its_state_goes_on_in_another():
    own, other = regulator(max_steps=15, patience=2), regulator(max_steps=15, patience=2)
    own.update(USER, 0.9)
    other.restore(own.state())
    assert other.steps(USER) == 15 and other.steps(OTHER) == 7
    assert other.state() == own.state() == {"lengths": {"user": 15.0}, "idle": {"user": 1.0}}
    assert other.update(USER, 0.9) and own.update(USER, 0.9)


@pytest.mark.parametrize(
    ("after", "before", "base", "q"),
    [(-0.6, -0.8, 0.0, 0.75), (0.0, -0.8, 0.0, 0.0), (-1.2, -0.8, 0.0, 1.5), (0.5, 0.2, 0.8, 0.5)],
)
def test_q_is_what_a_run_left_of_the_distance_from_the_base(after, before, base, q):
    found = remaining_harm(torch.tensor(after), torch.tensor(before), torch.tensor(base))
    assert float(found) == pytest.approx(q)


def test_where_nothing_was_unlearned_a_run_cannot_bring_anything_back():
    """The distance is 0: q is large instead of undefined, and runs do not shrink for it."""
    q = float(remaining_harm(torch.tensor(-0.1), torch.tensor(0.0), 0.0))
    assert 1e30 < q < float("inf")
