"""λ, μ and the outer learning rate at each step, as a run records them."""

from __future__ import annotations

from dataclasses import replace
from math import tanh

import pytest

from fakes import encoded_data, tiny_model
from resalign.backend.errors import ConfigError
from resalign.backend.hardening.methods import read_plan
from resalign.backend.hardening.ramps import learning_rate, resilience_weight, retain_weight
from resalign.backend.hardening.run import harden
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.ramp import Ramp
from resalign.backend.plan.regulator import RegulatorConfig

USER = FineTuneConfig(name="user", learning_rate=1e-2, steps=1)


def plan(**changes) -> HardeningPlan:
    settings = {
        "concepts": (Concept("bad", prompts=("bad",)),), "fine_tunes": (USER,),
        "adapter": AdapterConfig(rank=1, targets=("cross_attention_kv",)),
        "outer_steps": 7, "warm_up_steps": 2, "learning_rate": 1e-2, "forget_batch": 1,
        "retain_batch": 1, "regulator": RegulatorConfig(enabled=False),
    }  # fmt: skip
    return HardeningPlan(**(settings | changes))


def weights(own: HardeningPlan) -> tuple[list[float], list[float], list[float]]:
    """λ, μ and learning rate of all steps."""
    steps = range(1, own.outer_steps + 1)
    return (
        [resilience_weight(own, step) for step in steps],
        [retain_weight(own, step) for step in steps],
        [learning_rate(own, step) for step in steps],
    )


def sigmoid(done: float) -> float:
    """The published ramp of slope 10, moved and stretched so that it goes from 0 to 1."""
    return 0.5 + tanh(5 * (done - 0.5)) / (2 * tanh(2.5))


def test_a_run_follows_its_ramps():
    """λ over the steps after the warm-up, μ over all of them, the rate down to its last value."""
    own = plan(
        resilience_weight=Ramp(start=0.2, end=1.0, begin=0.25, until=0.9),
        retain_weight=Ramp(start=1.0, end=3.0, shape="sigmoid"),
        final_learning_rate=5e-3,
    )
    records = harden(tiny_model(), own, data=encoded_data()).records
    lambdas, mus, rates = (
        [getattr(record, name) for record in records]
        for name in ("resilience_weight", "retain_weight", "learning_rate")
    )
    assert lambdas == pytest.approx([0, 0, 0.2, 0.2, 0.2 + 0.8 * 25 / 65, 0.2 + 0.8 * 50 / 65, 1])
    assert [len(record.simulations) for record in records] == [0, 0, 1, 1, 1, 1, 1]
    assert mus == pytest.approx([1 + 2 * sigmoid(step / 6) for step in range(7)])
    assert rates == pytest.approx([0.01, 0.01, 0.009, 0.008, 0.007, 0.006, 0.005])
    assert weights(own) == (lambdas, mus, rates)
    assert all(0 < record.seconds < 60 for record in records)


def test_a_ramp_can_fall_and_lie_anywhere_in_the_run():
    falling = Ramp(start=4.0, end=1.0, begin=0.5, shape="sigmoid")
    own = plan(outer_steps=9, warm_up_steps=0, retain_weight=falling)
    expected = [4.0] * 5 + [4 - 3 * sigmoid(done) for done in (0.25, 0.5, 0.75, 1.0)]
    assert weights(own)[1] == pytest.approx(expected)
    assert weights(own)[1][4] == 4 and weights(own)[1][8] == pytest.approx(1)


def test_a_ramp_without_length_is_a_jump():
    own = plan(
        outer_steps=5, warm_up_steps=0, retain_weight=Ramp(start=1, end=2, begin=0.5, until=0.5)
    )
    assert weights(own)[1] == [1, 1, 1, 2, 2]


def test_plain_numbers_stay_as_they_are():
    own = plan(resilience_weight=0.4, retain_weight=3)
    assert weights(own) == ([0, 0] + [0.4] * 5, [3.0] * 7, [0.01] * 7)


def test_a_single_step_has_the_weights_of_the_beginning():
    """And the last learning rate: it is that of the run's end."""
    ramp = Ramp(start=0.5, end=2.0)
    own = plan(outer_steps=1, warm_up_steps=0, resilience_weight=ramp, retain_weight=ramp,
               final_learning_rate=1e-3)  # fmt: skip
    assert weights(own) == ([0.5], [0.5], [pytest.approx(1e-3)])
    assert weights(replace(own, warm_up_steps=1)) == ([0], [0.5], [0.01])


@pytest.mark.parametrize(
    "changes", [{"fine_tunes": ()}, {"method": "redirect"}, {"method": "project"}]
)
def test_where_nobody_is_simulated_there_is_no_resilience_term(changes):
    """Each method reads the plan first, and leaves out the users whom it does not simulate."""
    _, read = read_plan(plan(**changes))
    assert weights(read)[0] == [0] * 7


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("start", {"start": -0.1}), ("start", {"start": 2e6}), ("end", {"end": -0.1}),
        ("end", {"end": 2e6}), ("begin", {"begin": -0.1}), ("begin", {"begin": 1.1}),
        ("until", {"begin": 0.5, "until": 0.4}), ("until", {"until": 1.1}),
        ("shape", {"shape": "cubic"}),
    ],
)  # fmt: skip
def test_a_ramp_out_of_bounds_is_refused_by_the_name_of_its_field(field, values):
    with pytest.raises(ConfigError, match=f"ramp: {field} is"):
        Ramp(**({"start": 0.0, "end": 1.0} | values))


def test_the_bounds_of_a_ramp_themselves_are_allowed():
    assert Ramp(start=0, end=1e6, begin=0, until=1) == Ramp(start=0.0, end=1e6)
    Ramp(start=1e6, end=0, begin=1, until=1)


def test_two_steps_have_the_beginning_and_the_end_of_a_ramp():
    ramp = Ramp(start=0.5, end=2.0)
    own = plan(outer_steps=2, warm_up_steps=0, resilience_weight=ramp, retain_weight=ramp)
    assert weights(own)[:2] == ([0.5, 2], [0.5, 2])
