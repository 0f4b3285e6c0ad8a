"""An attack's draws: batches, shares, prior preservation, and the course of its steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes_attacks import ATTACK, DATA, assert_untouched, attack_by, prediction, state

from fakes import random_set, tiny_model
from resalign.backend.errors import ConfigError
from resalign.backend.probe.attack import attacked
from resalign.backend.probe.attack_batches import AttackBatches
from resalign.backend.probe.attack_data import AttackData
from resalign.backend.probe.attack_optimisers import learning_rate_share


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_accumulated_batches_equal_one_larger_batch(share):
    found = []
    for batch, accumulate in ((8, 1), (2, 4)):
        model = tiny_model()
        attack = attack_by("full", batch=batch, accumulate=accumulate, concept_share=share)
        with attacked(model, replace(attack, optimiser="sgd"), DATA):
            found.append(prediction(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert (found[0] - prediction(tiny_model())).abs().max() > 1e-3


def test_warm_up_rises_to_the_whole_rate_and_then_the_schedule_runs():
    attack = replace(ATTACK, steps=8, warm_up_steps=4, schedule="linear")
    found = [learning_rate_share(attack, step) for step in range(1, 9)]
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    cosine = replace(attack, warm_up_steps=0, schedule="cosine")
    assert learning_rate_share(cosine, 1) == 1
    assert learning_rate_share(cosine, 5) == pytest.approx(0.5)


def test_the_learning_rate_of_each_step_is_used():
    """One SGD update in a warm-up of four moves a quarter as far as a whole one."""

    def move(warm: int) -> torch.Tensor:
        model = tiny_model()
        before = model.denoiser.conv_in.weight.clone()
        attack = attack_by(
            "full", steps=4, looks=(1,), warm_up_steps=warm, optimiser="sgd", weight_decay=0
        )
        seen: list[torch.Tensor] = []

        def evaluation(_: int) -> None:
            seen.append(model.denoiser.conv_in.weight.detach() - before)

        with attacked(model, replace(attack, learning_rate=0.1), DATA, evaluate_at=evaluation):
            return seen[0]

    torch.testing.assert_close(4 * move(4), move(0), rtol=1e-3, atol=1e-6)


def test_the_gradient_is_clipped_to_its_norm():
    """A clipped SGD update of rate 1 is as long as the norm; unclipped, longer."""

    def length(norm: float) -> float:
        model = tiny_model()
        before = torch.cat([part.flatten() for part in model.denoiser.parameters()]).clone()
        attack = attack_by(
            "full", steps=1, looks=(), optimiser="sgd", weight_decay=0, gradient_norm=norm
        )
        with attacked(model, replace(attack, learning_rate=1), DATA):
            after = torch.cat([part.detach().flatten() for part in model.denoiser.parameters()])
        return float((after - before).norm())

    assert length(0.01) == pytest.approx(0.01, rel=1e-3)
    assert length(0) > 0.1


class Untouchable:
    """A set that must not be drawn from."""

    def draw(self, *_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("drawn from the wrong set")

    def to(self, *_: Any) -> Untouchable:
        return self


def test_shares_of_none_and_all_draw_from_one_set_alone():
    unusable: Any = Untouchable()
    with attacked(tiny_model(), ATTACK, replace(DATA, concept=unusable)):
        pass
    alone = replace(ATTACK, concept_share=1.0)
    with attacked(tiny_model(), alone, replace(DATA, data=unusable)):
        pass
    with attacked(tiny_model(), alone, replace(DATA, data=None)):
        pass


def test_the_concepts_share_holds_over_the_run_and_shares_a_pass():
    """A share of 0.3 of 5 samples is 1 or 2 of them, 1.5 on average, in one pass of 5."""
    attack = replace(ATTACK, batch=5, concept_share=0.3)
    data = AttackData(data=random_set(8, 1, shift=-9.0), concept=random_set(8, 2, shift=9.0))
    batches = AttackBatches(tiny_model(), attack, data, seed=0)
    counts = []
    for step in range(1, 201):
        (one,) = batches.update(step)
        assert len(one.draw) == one.own == 5
        counts.append(int((one.draw.latents.mean(dim=(1, 2, 3)) > 0).sum()))
    assert set(counts) == {1, 2}
    assert sum(counts) / 200 == pytest.approx(1.5, abs=0.12)


def test_sets_of_different_sizes_take_passes_of_their_own():
    wide = random_set(8, 2, shift=9.0)
    bucket = wide.buckets[0]
    wide = replace(wide, buckets=(replace(bucket, latents=bucket.latents.repeat(1, 1, 1, 2)),))
    attack = replace(ATTACK, batch=4, concept_share=0.5)
    batches = AttackBatches(tiny_model(), attack, replace(DATA, concept=wide), seed=0)
    assert [tuple(one.draw.latents.shape) for one in batches.update(1)] == [
        (2, 4, 8, 8), (2, 4, 8, 16)
    ]  # fmt: skip
    with attacked(tiny_model(), attack, replace(DATA, concept=wide)):
        pass


def test_prior_preservation_enters_the_loss_by_its_weight():
    """loss + weight · prior's loss: linear in the weight, and in the same pass."""
    data = replace(DATA, prior=random_set(8, 3, shift=2.0))

    def first_loss(weight: float | None) -> float:
        losses: list[float] = []
        attack = ATTACK if weight is None else replace(
            ATTACK, prior_data="retain", prior_weight=weight
        )  # fmt: skip
        with attacked(tiny_model(), attack, data, on_step=lambda _, loss: losses.append(loss)):
            return losses[0]

    alone, one, two = first_loss(None), first_loss(1.0), first_loss(2.0)
    assert first_loss(0.0) == pytest.approx(alone)
    assert one > alone + 0.1
    assert two - one == pytest.approx(one - alone, rel=1e-4)
    (only,) = AttackBatches(tiny_model(), replace(ATTACK, prior_data="x"), data, 0).update(1)
    assert (only.own, len(only.draw)) == (4, 8)


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({}, AttackData(data=None), "its data 'retain' were not given"),
        ({"concept_share": 0.2}, AttackData(data=DATA.data), "no forget set"),
        ({"prior_data": "cats"}, DATA, "its prior_data 'cats'"),
        ({"flip": True}, DATA, "no mirror images"),
        ({"text_encoder": True}, DATA, "the model has none"),
    ],
)
def test_what_an_attack_needs_and_lacks_is_an_error(changes, data, message):
    """Never quietly another attack; and the model is whole after it."""
    model = tiny_model()
    before = state(model)
    with pytest.raises(ConfigError, match=message), attacked(
        model, replace(ATTACK, **changes), data
    ):  # fmt: skip
        pass
    assert_untouched(model, before)
