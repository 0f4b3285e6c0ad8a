"""Gradients and moments that wait in main memory: the bytes of AdamW on the device, and counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_distil import SMALL, equal, plan, run
from test_memory_plan import hardening_plan, predicted

from resalign.backend.errors import ConfigError
from resalign.backend.hardening.waiting import WaitingAdamW
from resalign.backend.memory.plan import _bases, _differences
from resalign.backend.memory.words import _COST
from resalign.backend.plan.durable import DistilConfig
from resalign.backend.plan.stages import Stage
from resalign.backend.run.folder import RunFolder

HERE = plan(distil=replace(SMALL, concept_share=0.5), micro_batch=3, gradient_norm=0.05)
WAITS = replace(HERE, distil=replace(HERE.distil, optimiser_waits=True))


def test_a_run_ends_in_the_bytes_of_moments_on_the_device():
    """With several micro-batches a step, clipping, and an average of the weights."""
    for changes in ({}, {"ema": 0.9}):
        one, other = (
            run(replace(own, distil=replace(own.distil, **changes))).adapter
            for own in (HERE, WAITS)
        )
        assert one.parameters and equal(one, other)


def test_an_interrupted_run_ends_in_the_same_bytes(tmp_path):
    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    whole = run(WAITS)
    with pytest.raises(KeyboardInterrupt):
        run(WAITS, tmp_path, on_progress=stop)
    with RunFolder.open(tmp_path) as folder:
        saved = folder.load_state()
    assert saved is not None and saved[0] == 2
    assert saved[1]["exp_avg.0"].abs().max() > 0
    assert equal(run(WAITS, tmp_path).adapter, whole.adapter)


def test_gradients_leave_the_weights_and_a_step_is_adamws():
    """By hand: two backward passes are added up, and the weights keep no gradient."""
    options = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.01}
    ours, theirs, unused = (torch.nn.Parameter(torch.tensor([3.0, -2.0])) for _ in range(3))
    waiting = WaitingAdamW([ours, unused], dict(options))
    adamw = torch.optim.AdamW([theirs], **options)
    for _ in range(3):
        with waiting.gathering() as gradients:
            for factor in (1.0, 2.0):
                (factor * ours.square().sum()).backward()
                assert ours.grad is None
        assert torch.equal(gradients[0], 6 * ours.detach()) and not gradients[1].any()
        waiting.update(gradients, 0.05)
        adamw.param_groups[0]["lr"] = 0.05
        theirs.grad = 6 * theirs.detach()
        adamw.step()
        assert torch.equal(ours, theirs) and ours.grad is None
    ours.square().sum().backward()
    assert ours.grad is not None, "outside, gradients stay where they are"
    with pytest.raises(TypeError, match="call update"):
        waiting.step()


def test_the_prediction_holds_no_moments():
    """Two numbers less for each weight; the tests' network peaks before it has gradients."""
    distil = DistilConfig(batch=4, stored_draws=8)
    here, waits = (
        predicted(hardening_plan(method="distil", distil=replace(distil, optimiser_waits=own)))
        for own in (False, True)
    )
    assert waits.weights == here.weights and waits.state < 0.2 * waits.weights
    assert here.state - waits.state == 2 * here.weights
    assert here.peak - waits.peak >= 2 * here.weights


def test_a_budget_too_small_for_moments_lets_them_wait():
    """Last of all, and with exact moments; a plan that does not distil has none that could."""
    own = plan(distil=replace(SMALL, optimiser="adamw8bit"), precision="fp32")
    *before, last = _bases(own, True)
    assert last.distil.optimiser_waits and last.distil.optimiser == "adamw"
    assert not any(base.distil.optimiser_waits for base in before)
    words = _differences(own, last)
    assert words["distil.optimiser_waits"] is True and words.keys() <= _COST.keys() | {"precision"}
    assert not any(base.distil.optimiser_waits for base in _bases(plan(method="erase"), True))


def test_rounded_moments_do_not_wait():
    with pytest.raises(ConfigError, match=r"optimiser_waits needs optimiser = 'adamw'"):
        DistilConfig(optimiser="adamw8bit", optimiser_waits=True)


def test_a_stage_may_wait_too():
    """One that distils before the last method."""
    distil = replace(SMALL, optimiser_waits=True)
    own = plan(method="erase", before=(Stage(method="distil", steps=2),), distil=distil)
    here = replace(own, distil=replace(distil, optimiser_waits=False))
    assert equal(run(own).adapter, run(here).adapter)
