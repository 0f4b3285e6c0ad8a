"""8-bit AdamW for all weights: refused where it is missing, resumed bit for bit, and counted."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec

import fakes_eight_bit
import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from test_distil import SMALL, equal, plan, run

import resalign as ra
from fakes import tiny_model
from resalign.backend.checkpoint.detect import detect
from resalign.backend.errors import ConfigError
from resalign.backend.hardening.optimisers import (
    check_optimiser,
    make_optimiser,
    moments_of,
    put_moments,
)
from resalign.backend.jobs.check import check_job
from resalign.backend.jobs.disk import denoiser_parameters, disk_estimate
from resalign.backend.plan.stages import Stage
from resalign.backend.run.folder import RunFolder

OWN = plan(distil=replace(SMALL, batch=2, concept_share=0.5, optimiser="adamw8bit"), outer_steps=3)
KINDS = ["fake", "real"]


@pytest.fixture(params=KINDS)
def installed(request, monkeypatch):
    if request.param == "fake":
        fakes_eight_bit.install(monkeypatch)
    elif find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    return request.param


def test_without_bitsandbytes_the_check_and_the_run_say_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"distil.optimiser is 'adamw8bit'.*pip install"):
        run(OWN)
    source = str(write_tiny_checkpoint(tmp_path / "a.safetensors"))
    job = ra.Job(checkpoint=source, output=str(tmp_path / "b.safetensors"), plan=OWN, device="cpu")
    assert any("adamw8bit" in problem for problem in check_job(job).problems)
    with pytest.raises(ConfigError, match="adamw8bit"):
        check_optimiser(replace(OWN, method="resalign", before=(Stage(method="distil"),)), "cpu")
    for other in (replace(OWN, method="erase"), plan()):  # which do not train with it
        check_optimiser(other, "cpu")


def test_where_it_does_not_work_the_check_says_on_which_device(monkeypatch):
    fakes_eight_bit.install(monkeypatch)
    monkeypatch.setattr(fakes_eight_bit.AdamW8bit, "step", lambda self: None)
    with pytest.raises(ConfigError, match=r"cannot do on cpu .a step gives wrong numbers"):
        check_optimiser(OWN, "cpu")


def test_it_follows_adamw_and_two_moments_take_two_bytes(installed):
    """On a quadratic, within the rounding of the moments; a small tensor is exact."""
    check_optimiser(OWN, "cpu")
    ends, random = {}, torch.Generator().manual_seed(0)
    aims = [torch.randn(n, generator=random) for n in (8192, 10)]
    for kind in ("adamw", "adamw8bit"):
        own = replace(OWN, distil=replace(SMALL, optimiser=kind), learning_rate=0.05)
        weights = [torch.nn.Parameter(torch.zeros_like(aim)) for aim in aims]
        optimiser = make_optimiser(own, list(weights), torch.device("cpu"))
        for _ in range(20):
            for weight, aim in zip(weights, aims, strict=True):
                weight.grad = (weight - aim).detach()
            optimiser.step()
        ends[kind] = [weight.detach() for weight in weights]
        moments = moments_of(optimiser, list(weights))
        size = sum(t.numel() * t.element_size() for n, t in moments.items() if n.endswith(".0"))
        assert size == (8192 * 8 if kind == "adamw" else 8192 * 2 + 2 * 32 * 4)
    torch.testing.assert_close(*(ends[kind][1] for kind in ends), rtol=0.01, atol=1e-3)
    assert 0 < (ends["adamw"][0] - ends["adamw8bit"][0]).norm() < 0.1 * ends["adamw"][0].norm()


def test_moments_that_are_put_back_give_the_same_steps(installed):
    random = torch.Generator().manual_seed(0)
    gradients = [torch.randn(3, 5000, generator=random)[step] for step in range(3)]
    ends = []
    for stop in (False, True):
        weight = torch.nn.Parameter(torch.ones(5000))
        optimiser = make_optimiser(OWN, [weight], torch.device("cpu"))
        for step, gradient in enumerate(gradients):
            if stop and step:
                saved = moments_of(optimiser, [weight])
                optimiser = make_optimiser(OWN, [weight], torch.device("cpu"))
                put_moments(optimiser, [weight], saved, step)
            weight.grad = gradient.clone()
            optimiser.step()
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_a_run_stopped_anywhere_ends_in_the_same_bytes(installed, tmp_path):
    whole = run(OWN)

    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(OWN, tmp_path, on_progress=stop)
    saved = RunFolder.open(tmp_path, read_only=True).load_state()
    assert saved is not None and any(name.startswith("absmax2.") for name in saved[1])
    assert equal(run(OWN, tmp_path).adapter, whole.adapter) and whole.adapter.parameters


def test_the_state_on_disk_takes_half_a_number_for_the_moments(tmp_path):
    info = detect(write_tiny_checkpoint(tmp_path / "a.safetensors"))
    numbers = denoiser_parameters(info)
    saved = disk_estimate(info, plan()) - disk_estimate(info, OWN)
    assert saved == pytest.approx(2 * 1.5 * 4 * numbers, abs=4)


def test_an_erasure_beside_it_needs_no_optimiser(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    own = replace(OWN, method="erase")
    weights = list(tiny_model().denoiser.parameters())
    assert isinstance(make_optimiser(own, weights, torch.device("cpu")), torch.optim.AdamW)
