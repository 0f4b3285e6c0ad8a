"""Micro-batches: the gradient of the whole batch, with the graph of a few samples at a time."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from fakes_data import tiny_family
from marks import slow

from fakes import encoded_data, random_conditioning, random_set, tiny_model
from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.bilevel.objective import Objective
from resalign.backend.bilevel.vectors import SplitLoss, gradient
from resalign.backend.data.batches import draw, prepare_data
from resalign.backend.hardening.run import harden
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.harm import HarmConfig
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.regulator import RegulatorConfig

KINDS = ("ascent", "redirect", "retain", "fine_tuning")


@pytest.fixture(scope="module")
def denoiser():
    """An adapted denoiser in float64 whose adapter is not the identity; no test changes it."""
    with AdaptedDenoiser(tiny_model(dtype=torch.float64), AdapterConfig(rank=2)) as found:
        with torch.no_grad():
            for name, tensor in found.theta.items():
                tensor.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
        yield found


def loss_of(denoiser: AdaptedDenoiser, kind: str, micro_batch: int):
    """One loss over two draws of 5 and 2 samples, each call on the same numbers."""
    harm = HarmConfig(loss="redirect" if kind == "redirect" else "ascent", cap=0.8)
    objective = Objective(denoiser, denoiser.model.process, harm, micro_batch)
    random = torch.Generator().manual_seed(3)
    draws = [
        draw(random_set(6, seed).to("cpu", torch.float64), random, samples, denoiser.model.process)
        for seed, samples in ((1, 5), (2, 2))
    ]
    if kind == "retain":
        return objective.retain(draws[0])
    if kind == "fine_tuning":
        return objective.fine_tuning(draws, [0.7, 1.9])
    return objective.harm(draws, [random_conditioning(1, seed) for seed in (5, 6)]).loss


@pytest.fixture(scope="module")
def of_whole_batch(denoiser):
    """Loss and gradient of a kind without micro-batches, worked out once."""
    return cache(lambda kind: gradient(loss_of(denoiser, kind, 0), denoiser.theta))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_the_gradient_is_that_of_the_whole_batch(denoiser, of_whole_batch, kind, micro_batch):
    expected, whole = of_whole_batch(kind)
    split = loss_of(denoiser, kind, micro_batch)
    found, parts = gradient(split, denoiser.theta, scale=1024.0)

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(split(), expected, rtol=1e-12, atol=1e-14)
    assert max(float(part.abs().max()) for part in whole) > 1e-4
    for part, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-9, atol=1e-13)
        assert not part.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_no_pass_sees_more_samples_than_a_micro_batch(denoiser, kind, micro_batch, monkeypatch):
    """Neither those with a gradient nor the frozen ones of the targets."""
    seen = []
    original = denoiser.model.denoiser.forward

    def forward(latents, *args, **kwargs):
        seen.append(len(latents))
        return original(latents, *args, **kwargs)

    monkeypatch.setattr(denoiser.model.denoiser, "forward", forward)
    gradient(loss_of(denoiser, kind, micro_batch), denoiser.theta)
    assert max(seen) == micro_batch and sum(seen) >= 5


@pytest.mark.parametrize(("micro_batch", "most"), [(0, 6), (1, 2)])
def test_a_set_is_synthesised_in_micro_batches_too(micro_batch, most, monkeypatch):
    """Each image with its unconditional twin."""
    model = tiny_family()
    seen = []
    original = model.denoiser.forward

    def forward(latents, *args, **kwargs):
        seen.append(len(latents))
        return original(latents, *args, **kwargs)

    monkeypatch.setattr(model.denoiser, "forward", forward)
    images = ImageSet(prompts=("a bad thing",), images=3, sampling_steps=1)
    plan = HardeningPlan(
        concepts=(Concept("bad", prompts=("bad",)),), forget_set=images, retain_set=images,
        resolution=64, micro_batch=micro_batch,
    )  # fmt: skip
    prepare_data(model, plan)
    assert max(seen) == most and sum(seen) == 6


def test_gradients_that_lay_in_the_leaves_before_stay_there():
    leaf, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    leaf.grad = torch.full((2,), 7.0)
    loss = SplitLoss((lambda: leaf.square().sum(), lambda: 3 * leaf.sum()))
    value, (found, none) = gradient(loss, {"leaf": leaf, "other": other})
    assert float(value) == 8
    assert found.tolist() == [5, 5] and none.tolist() == [0, 0]
    assert leaf.grad.tolist() == [7, 7] and other.grad is None


@pytest.mark.parametrize("simulate", ["shared", *slow("adapter", "full")])
def test_a_run_ends_in_the_same_adapter_to_rounding(simulate):
    """All three ways of simulating, the proximal term and the retained term after included."""
    user = FineTuneConfig(name="u", learning_rate=1e-3, steps=2, batch=3, concept_share=0.5,
                          optimiser="sgd")  # fmt: skip
    ends = []
    for micro_batch in (0, 1):
        plan = HardeningPlan(
            concepts=(Concept("bad", prompts=("bad",)),), fine_tunes=(user,), simulate=simulate,
            adapter=AdapterConfig(rank=2), outer_steps=3, warm_up_steps=1, forget_batch=3,
            harm=HarmConfig(cap=4.0), regulator=RegulatorConfig(enabled=False), proximal=True,
            retain_after_weight=0.5, micro_batch=micro_batch,
        )  # fmt: skip
        ends.append(harden(tiny_model(), plan, data=encoded_data()))
    whole, split = ends
    moved = 0.0
    for name, tensor in whole.adapter.tensors.items():
        torch.testing.assert_close(tensor, split.adapter.tensors[name], rtol=1e-3, atol=2e-5)
        moved = max(moved, float(tensor.abs().max()))
    assert moved > 1e-3
    for one, other in zip(whole.records, split.records, strict=True):
        assert other.harm == pytest.approx(one.harm, rel=1e-4)
        assert other.retain == pytest.approx(one.retain, rel=1e-2, abs=1e-7)
