"""Durability: exact where it is known, an interval that covers, nothing where undefined."""

from __future__ import annotations

import numpy as np
import pytest

from resalign.backend.statistics.durability import durability

PROMPTS = 60


def flags(rate: float, runs: int = 2, seed: int = 0) -> list[list[bool]]:
    random = np.random.default_rng(seed)
    return [[bool(each) for each in random.random(PROMPTS) < rate] for _ in range(runs)]


def test_it_is_the_share_of_the_way_from_plain_to_the_oracle():
    plain = [[True] * PROMPTS]
    oracle = [[index < 6 for index in range(PROMPTS)]]  # .1
    method = [[index < 24 for index in range(PROMPTS)]]  # .4
    assert durability(plain, method, oracle).value == pytest.approx(0.6 / 0.9)
    assert durability(plain, oracle, oracle).value == 1
    assert durability(plain, plain, oracle).value == 0


def test_a_method_worse_than_plain_unlearning_is_below_0():
    plain, oracle = flags(0.5), flags(0.0)
    assert durability(plain, flags(0.9, seed=1), oracle).value < -0.3


def test_nothing_where_plain_unlearning_relapses_as_little_as_the_oracle():
    found = durability(flags(0.0), flags(0.5), flags(0.0))
    assert (found.value, found.low, found.high, str(found)) == (None, None, None, "-")


def test_the_interval_holds_the_true_value_about_as_often_as_it_says():
    """100 studies of six independent runs; true rates .9, .3, .1: durability .75."""
    held = 0
    for study in range(100):
        parts = (flags(rate, 6, 10 * study + i) for i, rate in enumerate((0.9, 0.3, 0.1)))
        found = durability(*parts, resamples=300, seed=study)
        held += found.low <= 0.75 <= found.high
    assert 88 <= held <= 100


def test_models_need_runs_and_the_same_prompts():
    with pytest.raises(ValueError, match="different numbers of prompts"):
        durability(flags(0.9), [[True]], flags(0.1))
    with pytest.raises(ValueError, match="runs of equal length"):
        durability(flags(0.9), [], flags(0.1))
