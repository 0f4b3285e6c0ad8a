"""Attacks by training: each does what it says, nothing else, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes_attacks import (
    ATTACK,
    DATA,
    EVERY_TARGET,
    METHODS,
    assert_untouched,
    attack_by,
    changed_modules,
    prediction,
    state,
)
from fakes_data import tiny_family
from marks import slow

from fakes import random_conditioning, random_set, tiny_model
from resalign.backend.adapter.targets import target_modules
from resalign.backend.probe.attack import attacked
from resalign.backend.probe.attack_data import AttackData


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_another_inside_and_the_same_to_the_bit_outside(method):
    """Every method moves the predictions; afterwards every weight is the one before."""
    model = tiny_model()
    before, expected = state(model), prediction(model)
    with attacked(model, attack_by(method), DATA) as inside:
        assert inside is model
        assert not any(module.training for module in model.denoiser.modules())
        assert (prediction(model) - expected).abs().max() > 1e-3
    assert_untouched(model, before)
    assert torch.equal(prediction(model), expected)


class OneSample:
    """A set of one sample and one caption."""

    def draw(self, _generator: Any, batch: int, **_: Any) -> Any:
        latents = random_set(1, 1).buckets[0].latents.expand(batch, -1, -1, -1)
        return latents, random_conditioning(1).expand(batch)

    def to(self, *_: Any) -> OneSample:
        return self


@pytest.mark.parametrize("method", ["full", *slow("lora", "dora", "loha", "lokr")])
def test_training_lowers_the_loss(method):
    """It is fine-tuning: on one picture seen again and again the loss falls."""
    losses: list[float] = []
    attack = attack_by(method, steps=24, looks=(), rank=4, batch=8, targets=EVERY_TARGET)
    with attacked(
        tiny_model(), attack, AttackData(data=OneSample()),  # type: ignore[arg-type]
        on_step=lambda _, loss: losses.append(loss),
    ):  # fmt: skip
        pass
    assert sum(losses[-6:]) < 0.97 * sum(losses[:6])


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
def test_an_adapter_changes_what_it_targets_and_no_other_layer(method):
    model = tiny_model()
    targets = ("cross_attention_kv",)
    expected = set(target_modules(model.denoiser, model.family.targets, targets))
    assert changed_modules(model, attack_by(method, targets=targets)) == expected


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
def test_an_adapter_can_sit_on_convolutions(method):
    model = tiny_model()
    expected = set(target_modules(model.denoiser, model.family.targets, ("convolution",)))
    assert changed_modules(model, attack_by(method, targets=("convolution",))) == expected


def test_full_changes_every_layer():
    model = tiny_model()
    every = {
        name
        for name, module in model.denoiser.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    assert changed_modules(model, attack_by("full")) == every


def test_rank_and_alpha_are_honoured():
    """One SGD update moves B by alpha / rank times its gradient, and the layer by its square."""

    def move(alpha: float) -> torch.Tensor:
        model = tiny_model()
        layer = target_modules(model.denoiser, model.family.targets, ("cross_attention_kv",))[0]
        attack = replace(
            ATTACK, steps=1, looks=(), optimiser="sgd", learning_rate=1, weight_decay=0,
            gradient_norm=0, alpha=alpha, targets=("cross_attention_kv",),
        )  # fmt: skip
        with attacked(model, attack, DATA):
            module: Any = model.denoiser.get_submodule(layer)
            assert module.lora_A["attack"].weight.shape[0] == 2
            return module.get_delta_weight("attack").detach()

    torch.testing.assert_close(move(0), move(2))
    torch.testing.assert_close(move(6), 9 * move(2))


@pytest.mark.parametrize("method", ["lora", "loha"])
def test_dropout_trains_otherwise_and_is_off_at_a_look(method):
    """Training sees it, evaluations do not, and the global generator is left alone."""
    found = {}
    for dropout in (0.0, 0.5):
        model, evaluations = tiny_model(), []
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        attack = attack_by(method, dropout=dropout, rank=4)
        with attacked(model, attack, DATA, evaluate_at=lambda _, s=evaluations, m=model: s.extend(
            [prediction(m), prediction(m)]
        )):  # fmt: skip
            found[dropout] = prediction(model)
        assert torch.equal(evaluations[0], evaluations[1])
        assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(found[0.0], found[0.5])


@pytest.mark.parametrize("method", ["lora", *slow("full", "dora", "loha", "lokr")])
def test_the_same_seed_gives_the_same_bytes(method):
    """Whatever the global generator's state; another seed, another model."""
    attack = attack_by(method, dropout=0.2, caption_dropout=0.3, concept_share=0.4)
    found = []
    for number, seed in enumerate((0, 0, 1)):
        model = tiny_model()
        torch.manual_seed(number)
        with attacked(model, attack, DATA, seed=seed):
            found.append(prediction(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, *slow(RuntimeError)])
def test_whatever_is_raised_passes_through_and_the_model_is_whole(method, error):
    """From a step, from an evaluation, and from the body of the context."""
    model = tiny_family()
    before = state(model)
    attack = attack_by(
        method, looks=(1, 3), ema=0.9, text_encoder=True, gradient_checkpointing=True
    )
    data = AttackData(data=replace(random_set(8, 1), texts=("one", "two")))

    def stop(*_: Any) -> None:
        raise error

    with pytest.raises(error), attacked(model, attack, data, on_step=stop):
        pass
    assert_untouched(model, before)
    with pytest.raises(error), attacked(model, attack, data, evaluate_at=stop):
        pass
    assert_untouched(model, before)
    with pytest.raises(error), attacked(model, attack, data):
        stop()
    assert_untouched(model, before)


def test_looks_come_after_their_steps_and_do_not_change_the_run():
    """In evaluation mode, each at a model of its own; the run ends as one never looked at."""
    model, seen, order = tiny_model(), [], []
    attack = replace(ATTACK, steps=4, looks=(1, 3), dropout=0.3, ema=0.5)

    def evaluation(step: int) -> None:
        assert not any(module.training for module in model.denoiser.modules())
        order.append(f"evaluation {step}")
        seen.append(prediction(model))

    with attacked(
        model,
        attack,
        DATA,
        evaluate_at=evaluation,
        on_step=lambda step, _: order.append(f"step {step}"),
    ):
        ended = prediction(model)
    assert order == ["step 1", "evaluation 1", "step 2", "step 3", "evaluation 3", "step 4"]
    assert not torch.equal(seen[0], seen[1])
    with attacked(model, attack, DATA):
        assert torch.equal(prediction(model), ended)
    with attacked(model, replace(attack, steps=3, looks=(3,)), DATA):
        assert torch.equal(prediction(model), seen[1])


def test_the_average_is_what_is_looked_at():
    """a ← d a + (1 − d) w with d = min(decay, (1 + step) / (10 + step)), from the first weights."""
    name = "conv_in.weight"

    def run(ema: float) -> list[torch.Tensor]:
        model, seen = tiny_model(), []
        attack = attack_by("full", looks=(1, 2, 3), ema=ema)
        with attacked(model, attack, DATA, evaluate_at=lambda _: seen.append(
            model.denoiser.get_parameter(name).detach().clone()
        )):  # fmt: skip
            seen.append(model.denoiser.get_parameter(name).detach().clone())
        return seen

    raw, averaged = run(0.0), run(0.25)
    expected = tiny_model().denoiser.get_parameter(name).detach()
    for step, decay in ((1, 2 / 11), (2, 0.25), (3, 0.25)):
        expected = decay * expected + (1 - decay) * raw[step - 1]
        torch.testing.assert_close(averaged[step - 1], expected)
    assert torch.equal(averaged[3], averaged[2])
