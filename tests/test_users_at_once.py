"""Simulated users that share passes: what each would have done alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_harden import FAST, SLOW, plan

from fakes import encoded_data, tiny_model
from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.errors import ConfigError
from resalign.backend.hardening.run import harden
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.regulator import RegulatorConfig
from resalign.backend.plan.solver import SolverConfig
from resalign.backend.plan.stages import Stage

THIRD = replace(FAST, name="third", learning_rate=2e-3, steps=3, batch=3, optimiser="adamw")
USERS = {
    "fine_tunes": (FAST, SLOW, THIRD), "configurations_per_step": 3, "outer_steps": 3,
    "warm_up_steps": 1,
}  # fmt: skip
CASES = {
    "plain": {},
    "with some of the concept, a prior, and judged by what is kept": {
        "retain_after_weight": 0.5,
        "fine_tunes": (
            replace(FAST, concept_share=0.5), SLOW,
            replace(THIRD, method="dreambooth", prior_data="retain"),
        ),
    },
    "on convolutions too": {
        "adapter": AdapterConfig(rank=2, alpha=6, targets=("attention", "convolution"))
    },
    "proximal, with products": {
        "proximal": True, "solver": SolverConfig(method="richardson", iterations=2, gamma=0.1),
    },
    "after another stage": {"before": (Stage(method="redirect", steps=1),)},
    "regulated": {"regulator": RegulatorConfig(low=0.0, high=0.01, factor=2.0, min_steps=1)},
    "checkpointed": {"gradient_checkpointing": True},
}  # fmt: skip


def hardened(**changes):
    model = tiny_model(dtype=torch.float64)
    data = encoded_data()
    return harden(model, plan(**(USERS | changes)), data=data)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("together", [2, 3])
def test_the_adapter_is_that_of_users_one_after_the_other(case, together):
    """In float64, where only the order of sums differs; users end at different steps."""
    alone = hardened(**CASES[case])
    found = hardened(users_at_once=together, **CASES[case])
    assert found.adapter.tensors.keys() == alone.adapter.tensors.keys()
    for name, tensor in found.adapter.tensors.items():
        torch.testing.assert_close(tensor, alone.adapter.tensors[name], rtol=1e-5, atol=1e-6)
    for one, other in zip(found.records, alone.records, strict=True):
        assert [s.steps for s in one.simulations] == [s.steps for s in other.simulations]
        for mine, theirs in zip(one.simulations, other.simulations, strict=True):
            assert mine.name == theirs.name
            assert mine.move == pytest.approx(theirs.move, rel=1e-4) and mine.move > 0
            assert mine.q == pytest.approx(theirs.q, rel=1e-4)


def test_users_share_their_passes(monkeypatch):
    """As many passes as the longest user has steps, each with everybody's samples."""
    model, sizes = tiny_model(), []
    true = model.denoiser.forward

    def forward(latents, *args, **options):
        if torch.is_grad_enabled():
            sizes.append(len(latents))
        return true(latents, *args, **options)

    monkeypatch.setattr(model.denoiser, "forward", forward)
    users = (replace(FAST, steps=4, batch=2), replace(FAST, name="b", steps=2, batch=3))
    harden(
        model,
        plan(
            fine_tunes=users, configurations_per_step=2, users_at_once=2, outer_steps=1,
            warm_up_steps=0, forget_batch=1, retain_batch=1,
            regulator=RegulatorConfig(enabled=False),
        ),
        data=encoded_data(),
    )  # fmt: skip
    assert sizes == [1, 1, 5, 5, 2, 2, 1, 1]  # harm, retain; 4 inner steps; harm at each θ*


def test_each_shared_inner_step_is_told_and_can_be_stopped():
    """Steps are as many as the longest has, by the names of all; what is raised comes out."""
    told = []

    def listen(progress):
        if progress.micro_total:
            told.append((progress.micro_step, progress.micro_total, progress.message))
            if len(told) == 5:
                raise ZeroDivisionError

    pair = plan(fine_tunes=(SLOW, FAST), configurations_per_step=2, users_at_once=2,
                outer_steps=2, warm_up_steps=0)  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        harden(tiny_model(), pair, data=encoded_data(), on_progress=listen)
    steps, totals, names = zip(*told, strict=True)
    assert steps[:3] == (1, 2, 3) and set(totals) == {3}
    assert {frozenset(name.split(", ")) for name in names} == {frozenset(("slow", "fast"))}


def test_the_network_has_no_trace_of_them_afterwards():
    model = tiny_model()
    names = list(model.denoiser.state_dict())
    with AdaptedDenoiser(model, AdapterConfig(rank=2)) as denoiser:
        theta = {name: tensor.clone() for name, tensor in denoiser.theta.items()}
        with pytest.raises(ZeroDivisionError):
            _train_and_fail(denoiser)
        assert all(torch.equal(tensor, theta[name]) for name, tensor in denoiser.theta.items())
        assert all(tensor.requires_grad for tensor in denoiser.theta.values())
        assert not any(module._forward_hooks for module in model.denoiser.modules())
    assert list(model.denoiser.state_dict()) == names


def _train_and_fail(denoiser: AdaptedDenoiser) -> None:
    with denoiser.side_by_side(2) as copies:
        for tensor in copies.users[0].values():
            tensor.data += 1
        raise ZeroDivisionError


@pytest.mark.parametrize("changes", [{"simulate": "adapter"}, {"micro_batch": 1}])
def test_it_is_refused_where_users_cannot_share(changes):
    with pytest.raises(ConfigError, match="users_at_once is 2; users share passes only with"):
        plan(users_at_once=2, **changes)
