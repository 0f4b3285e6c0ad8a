"""The average of all weights: PyTorch's own form, the run's result, and resumed bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from test_distil import SMALL, equal, plan, run
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fakes import encoded_data, tiny_model
from resalign.backend.checkpoint.detect import detect
from resalign.backend.hardening.average import Average
from resalign.backend.hardening.methods import read_plan
from resalign.backend.hardening.setup import adapted, set_up
from resalign.backend.jobs.disk import denoiser_parameters, disk_estimate
from resalign.backend.plan.stages import Stage
from resalign.backend.run.folder import RunFolder

OWN = plan(distil=replace(SMALL, batch=2, concept_share=0.5, ema=0.6), outer_steps=3)


@pytest.fixture(scope="module")
def whole():
    found = run(OWN)
    assert found.adapter.parameters
    return found


def test_it_is_pytorchs_own_average():
    layer = torch.nn.Linear(3, 2)
    theirs = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    ours = Average(dict(layer.named_parameters()), 0.7)
    for step in range(1, 5):
        with torch.no_grad():
            layer.weight.add_(step)
            layer.bias.mul_(-step)
        theirs.update_parameters(layer)
        ours.update(dict(layer.named_parameters()), step)
    expected = dict(theirs.module.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in ours.values.items())


def test_the_result_is_the_average_over_the_steps(whole):
    """By hand: after three steps w₁, w₂, w₃ it is .36 w₁ + .24 w₂ + .4 w₃."""
    own = read_plan(OWN)
    with adapted(tiny_model(), own[1]) as denoiser:
        setup = set_up(denoiser, own[1], encoded_data())
        expected = {name: torch.zeros_like(t) for name, t in denoiser.theta.items()}
        start = {name: tensor.detach().clone() for name, tensor in denoiser.theta.items()}
        for step, share in enumerate((0.36, 0.24, 0.4), start=1):
            own[0].step(setup, step)
            for name, tensor in denoiser.theta.items():
                expected[name] += share * (tensor.detach() - start[name])
    for name, change in expected.items():
        torch.testing.assert_close(whole.adapter.change(name), change, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("at", [2, 3])
def test_a_run_stopped_anywhere_ends_in_the_same_bytes(whole, tmp_path, at):
    """Before and after its last step, whose state has the average alone."""

    def stop(progress):
        if progress.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(OWN, tmp_path, on_progress=stop)
    saved = RunFolder.open(tmp_path, read_only=True).load_state()
    assert saved is not None
    assert any(name.startswith("average.") for name in saved[1]) == (at < 3)
    assert equal(run(OWN, tmp_path).adapter, whole.adapter)
    (tmp_path / "adapter.safetensors").unlink()  # made again from the state
    assert equal(run(OWN, tmp_path).adapter, whole.adapter)


def test_a_stage_after_it_starts_from_the_average(whole):
    own = replace(OWN, method="erase", before=(Stage(method="distil", steps=3),), seed=0)
    nothing = replace(own, erase=replace(own.erase, ratio=1e6))
    found, alone = run(nothing), run(replace(OWN, seed=1))  # a first stage has the next seed
    assert equal(found.adapter, alone.adapter)


def test_the_state_on_disk_holds_it_too(tmp_path):
    info = detect(write_tiny_checkpoint(tmp_path / "a.safetensors"))
    more = disk_estimate(info, OWN) - disk_estimate(info, plan())
    assert more == 2 * 4 * denoiser_parameters(info)


def test_only_distillation_counts_its_moments_and_average_on_the_disk(tmp_path):
    info = detect(write_tiny_checkpoint(tmp_path / "a.safetensors"))
    erasing = replace(OWN, method="erase")
    assert erasing.distil.ema > 0
    # The export, the adapter, and the state twice
    assert disk_estimate(info, erasing) - info.export_bytes == 3 * 4 * denoiser_parameters(info)
