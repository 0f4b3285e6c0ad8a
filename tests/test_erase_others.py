"""Alternatives of `erase`: shrink and noise, Fisher resets, random directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_erase import moments, plan, run

from fakes import encoded_data, tiny_model
from resalign.backend.hardening.erase.fisher import fisher_ratio, reset, squared_gradients
from resalign.backend.hardening.erase.layers import erasable
from resalign.backend.hardening.erase.shrink import shrunk
from resalign.backend.hardening.erase.subspace import at_random, concept_directions, without
from resalign.backend.hardening.methods import read_plan
from resalign.backend.hardening.setup import adapted, set_up
from resalign.backend.numerics.seeds import generator
from resalign.backend.plan.durable import EraseConfig
from resalign.backend.plan.file import plan_hash
from resalign.backend.plan.methods import method_in_words
from resalign.backend.plan.stages import Stage

TEXT = EraseConfig(samples=3, batch=3, ratio=1.2, targets=("cross_attention_kv",))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shrinking_keeps_a_share_and_adds_noise_of_the_layers_scale():
    """W' − αW is independent of W, with deviation β/√n for n inputs."""
    weight = torch.randn(400, 25, 3, 3, generator=seeded())
    assert torch.equal(shrunk(weight, kept_share=1, noise=0, random=seeded()), weight)
    assert torch.equal(shrunk(weight, kept_share=0.5, noise=0, random=seeded()), weight * 0.5)
    new = shrunk(weight, kept_share=0.25, noise=3.0, random=seeded(1))
    added = new - 0.25 * weight
    assert float(added.std()) == pytest.approx(3 / 15, rel=0.01)
    assert abs(float((added * weight).mean())) < 0.005
    assert torch.equal(new, shrunk(weight, kept_share=0.25, noise=3.0, random=seeded(1)))


def test_squared_gradients_are_those_of_single_samples_by_weight():
    """(w · x)² / 2 has the gradient (w · x) x. It is squared for each sample, then averaged."""
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]])
    losses = [
        (weight, lambda x=x: lambda: (w @ x).square() / 2)
        for weight, x in zip((1.0, 1.0, 2.0), rows, strict=True)
    ]
    found = squared_gradients(losses, {"w": w})["w"]
    expected = (
        torch.tensor([1.0, 0.0]) + torch.tensor([9.0, 9.0]) + 2 * torch.tensor([1.0, 1.0])
    ) / 4
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(squared_gradients(losses, {"w": w}, scale=64.0)["w"], expected)


def test_the_highest_ratios_become_the_mean_and_all_else_stays():
    concept = torch.tensor([[8.0, 1.0], [1.0, 0.0]])
    rest = torch.tensor([[4.0, 1.0], [0.1, 2.9]])  # of mean 2
    ratio = fisher_ratio(concept, rest)
    torch.testing.assert_close(ratio, concept / (rest + 0.02))
    weight = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert torch.equal(reset(weight, ratio, 0.5), torch.tensor([[3.0, 2.0], [3.0, 6.0]]))
    assert torch.equal(reset(weight, ratio, 0.25), torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert torch.equal(reset(weight, ratio, 0.2), weight)
    assert torch.equal(fisher_ratio(torch.zeros(2), torch.zeros(2)), torch.zeros(2))


def test_random_directions_are_as_many_and_others():
    rows = torch.randn(500, 8, generator=seeded())
    concept = rows * torch.tensor([9.0, 9.0, 1, 1, 1, 1, 1, 1])
    found = concept_directions(moments(rows), moments(concept), ratio=4.0, floor=1e-6)
    drawn = at_random(found, seeded(1))
    assert drawn.removed == found.removed == 2 and torch.equal(drawn.strengths, found.strengths)
    torch.testing.assert_close(drawn.vectors.T @ drawn.vectors, torch.eye(2).double())
    weight = torch.randn(3, 8, generator=seeded(2)).double()
    gone = without(weight, drawn) @ drawn.root @ drawn.vectors
    assert gone.abs().max() < 1e-9
    assert (without(weight, drawn) @ found.root @ found.vectors).abs().max() > 0.1


def test_a_run_shrinks_all_matrices_and_kernels():
    """And nothing else: biases and norms stay. With targets, only their layers' weights."""
    own = plan(erase=EraseConfig(how="shrink", kept_share=0.5, noise=0.0))
    start = dict(tiny_model().denoiser.named_parameters())
    adapter = run(own).adapter
    assert set(adapter.parameters) == {n for n, t in start.items() if t.dim() > 1}
    for name in adapter.parameters:
        assert torch.equal(adapter.change(name), -start[name] / 2)
    noisy = run(plan(erase=replace(TEXT, how="shrink", kept_share=1.0, noise=0.5))).adapter
    assert {name.split(".")[-2] for name in noisy.parameters} == {"to_k", "to_v"}
    name = noisy.parameters[0]
    drawn = torch.randn(start[name].shape, generator=generator(0, "erase", "noise", name))
    expected = 0.5 * drawn / start[name][0].numel() ** 0.5
    torch.testing.assert_close(noisy.change(name), expected, atol=1e-6, rtol=1e-4)


def test_a_run_resets_the_share_that_it_is_asked_for():
    """By hand, from the gradients of the feed's own samples; it says how far it is."""
    own, told = plan(erase=replace(TEXT, how="fisher", reset_share=0.1)), []
    result = run(own, on_progress=lambda p: told.append((p.micro_step, p.micro_total, p.message)))
    assert told[:6] == [(n, 6, "measuring gradients") for n in range(1, 7)]
    model = tiny_model()
    with adapted(model, own) as denoiser:
        setup = set_up(denoiser, read_plan(own)[1], encoded_data())
        name = next(iter(erasable(setup))) + ".weight"
        squares = []
        for losses in (setup.feed.concept_losses(), setup.feed.kept_losses()):
            found = [torch.autograd.grad(make()(), denoiser.theta[name])[0] for _, make in losses]
            squares.append(torch.stack(found).square().mean(0))
        weight = denoiser.theta[name].detach().clone()
    ratio = squares[0] / (squares[1] + 0.01 * squares[1].mean())
    count = int(0.1 * weight.numel())
    border = ratio.flatten().topk(count).values[-1]
    change = result.adapter.change(name)
    torch.testing.assert_close(weight + change, torch.where(ratio >= border, weight.mean(), weight))
    assert not result.warnings


def test_a_run_along_random_directions_removes_as_many():
    found, drawn = (run(plan(erase=replace(TEXT, how=how))) for how in ("directions", "random"))
    assert found.records[0].erased == drawn.records[0].erased
    names = found.adapter.parameters
    assert names and drawn.adapter.parameters == names
    assert not any(torch.equal(found.adapter.change(n), drawn.adapter.change(n)) for n in names)


def test_cards_name_what_was_done_and_old_plans_keep_their_hash():
    own = plan(erase=EraseConfig(ratio=2.0))
    assert method_in_words(own) == "erasure of the concepts' directions"
    words = {
        how: method_in_words(plan(erase=EraseConfig(how=how)))
        for how in ("random", "shrink", "fisher")
    }
    assert (
        "control" in words["random"] and "UNDO" in words["shrink"] and "Fisher" in words["fisher"]
    )
    hashes = {plan_hash(replace(own, erase=replace(own.erase, how=how))) for how in words}
    assert len(hashes | {plan_hash(own)}) == 4
    assert method_in_words(plan(method="distil", before=(Stage(method="erase"),))) == (
        "distillation of all weights"
    )
