"""Optimisers of attacks: installed or refused, and each does what its name says."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from fakes_attacks import ATTACK, DATA, assert_untouched, attack_by, prediction, state
from fakes_data import tiny_family

from fakes import tiny_model
from resalign.backend.errors import ConfigError
from resalign.backend.probe.attack import attacked
from resalign.backend.probe.attack_optimisers import make_optimiser
from resalign.backend.probe.attack_weights import TrainedWeights


@pytest.mark.parametrize(
    ("optimiser", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")]
)
def test_an_optimiser_that_is_not_installed_says_how_to_install_it(optimiser, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    model = tiny_model()
    before = state(model)
    with (
        pytest.raises(ConfigError, match=f"pip install {package}"),
        attacked(model, replace(ATTACK, optimiser=optimiser), DATA),
    ):
        pass
    assert_untouched(model, before)


def test_8_bit_adamw_follows_adamw():
    """Its moments are rounded, so it follows closely and not exactly; needs it installed."""
    pytest.importorskip("bitsandbytes")
    found = {}
    for optimiser in ("adamw", "adamw8bit"):
        model = tiny_model()
        with attacked(model, replace(attack_by("full"), optimiser=optimiser), DATA):
            found[optimiser] = prediction(model)
    start = prediction(tiny_model())
    moved = (found["adamw"] - start).norm()
    assert 0 < (found["adamw"] - found["adamw8bit"]).norm() < 0.2 * moved


def test_prodigy_finds_its_step_and_prints_nothing(capsys):
    """At a learning rate of 1 it reaches the minimum of a quadratic ten away from the start."""
    pytest.importorskip("prodigyopt")
    weight = torch.nn.Parameter(torch.zeros(3))
    attack = replace(ATTACK, optimiser="prodigy", learning_rate=1.0, weight_decay=0.01)
    optimiser = make_optimiser(attack, TrainedWeights(attack, (), [weight], [], [torch.float32]))
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.01]
    for _ in range(400):
        optimiser.zero_grad()
        (weight - 10).square().sum().backward()
        optimiser.step()
    assert (weight - 10).abs().max() < 1
    assert capsys.readouterr().out == ""


def test_prodigy_trains_the_model():
    pytest.importorskip("prodigyopt")
    model = tiny_model()
    expected = prediction(model)
    with attacked(model, replace(ATTACK, optimiser="prodigy", learning_rate=1.0), DATA):
        assert not torch.equal(prediction(model), expected)


def test_prodigy_with_two_learning_rates_is_refused():
    pytest.importorskip("prodigyopt")
    attack = replace(ATTACK, optimiser="prodigy", learning_rate=1.0, text_encoder=True)
    with (
        pytest.raises(ConfigError, match="set it to 1"),
        attacked(tiny_family(), attack, DATA),
    ):
        pass
