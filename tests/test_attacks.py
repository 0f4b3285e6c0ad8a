"""Attacks by training: each does what it says, nothing else, and leaves nothing behind."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes_data import tiny_family
from marks import slow

from fakes import PoisonedSet, random_conditioning, random_set, tiny_model
from resalign.backend.adapter.targets import target_modules
from resalign.backend.errors import ConfigError, DivergenceError
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.model.encode import encode_prompts
from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.probe.attack import attacked
from resalign.backend.probe.attack_batches import AttackBatches
from resalign.backend.probe.attack_data import AttackData
from resalign.backend.probe.attack_optimisers import learning_rate_share, make_optimiser
from resalign.backend.probe.attack_weights import TrainedWeights

METHODS = ("lora", "dora", "loha", "lokr", "full")
ATTACK = FineTuneAttack(name="attack", steps=3, rank=2, learning_rate=1e-2)
EVERY_TARGET = ("attention", "feed_forward", "convolution")
DATA = AttackData(data=random_set(8, 1), concept=random_set(8, 2, shift=1.0))


def attack_by(method: str, **changes: Any) -> FineTuneAttack:
    rate = 1e-3 if method == "full" else 1e-2
    return replace(ATTACK, method=method, learning_rate=rate, **changes)


def networks(model: Any) -> list[torch.nn.Module]:
    return [model.denoiser, *model.text_encoders]


def state(model: Any) -> list[dict[str, torch.Tensor]]:
    return [{n: t.clone() for n, t in part.state_dict().items()} for part in networks(model)]


def assert_untouched(model: Any, before: list[dict[str, torch.Tensor]]) -> None:
    """Every tensor by name, type and bit; no module, gradient or mode left behind."""
    for network, old in zip(networks(model), before, strict=True):
        now = network.state_dict()
        assert now.keys() == old.keys()
        assert all(now[name].dtype == old[name].dtype for name in old)
        assert all(torch.equal(now[name], old[name]) for name in old)
        assert not any(part.requires_grad for part in network.parameters())
        assert all(part.grad is None for part in network.parameters())
        assert not any(module.training for module in network.modules())
        assert not any(getattr(m, "gradient_checkpointing", False) for m in network.modules())
        assert not hasattr(network, "peft_config")


def prediction(model: Any) -> torch.Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = random_conditioning(2).to("cpu", model.dtype)
        return model.denoise(latents.to(model.dtype), torch.tensor([10, 500]), told).float()


def changed_modules(model: Any, attack: FineTuneAttack, data: AttackData = DATA) -> set[str]:
    """Layers whose answer to a fixed input is another one inside the attack than outside."""
    layers = {
        name: module
        for name, module in model.denoiser.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    random = torch.Generator().manual_seed(0)
    inputs = {
        name: torch.randn(2, layer.in_features, generator=random)
        if isinstance(layer, torch.nn.Linear)
        else torch.randn(2, layer.in_channels, 4, 4, generator=random)
        for name, layer in layers.items()
    }

    @torch.no_grad()
    def answers() -> dict[str, torch.Tensor]:
        return {name: model.denoiser.get_submodule(name)(x) for name, x in inputs.items()}

    before = answers()
    with attacked(model, attack, data):
        after = answers()
    return {n for n in before if (before[n] - after[n]).abs().max() > 1e-5 * before[n].abs().max()}


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
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
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
    """Where it is installed; its moments are rounded, so it follows closely and not exactly."""
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


@pytest.mark.parametrize("method", ["lora", "full", *slow("dora", "loha", "lokr")])
def test_the_text_encoder_is_trained_if_asked_and_only_then(method):
    """Prompts read otherwise inside; without it, and afterwards, to the bit the same."""
    model = tiny_family()
    before = state(model)
    read = encode_prompts(model, ["one"])["context"]
    attack = attack_by(method, text_encoder_learning_rate=1e-3)
    with attacked(model, attack, DATA):
        assert torch.equal(encode_prompts(model, ["one"])["context"], read)
    with attacked(model, replace(attack, text_encoder=True), DATA):
        assert (encode_prompts(model, ["one"])["context"] - read).abs().max() > 1e-4
    assert_untouched(model, before)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_captions_read_in_training_are_those_encoded_before(family):
    """Without a step of its own the text encoder gives each caption its stored embedding."""
    model = tiny_family(family)
    texts = ("one", "a longer two")
    encoded = encode_prompts(model, ["", *texts])
    stored = encoded.without("time_ids")
    ids = torch.arange(48.0).view(8, 6)
    base = random_set(8, 1)
    sizes = Conditioning({"time_ids": ids} if family == "sdxl" else {})
    buckets = (replace(base.buckets[0], own=sizes),)
    own = replace(
        base, texts=texts, conditioning=stored[1:], empty=stored[:1], buckets=buckets
    )  # fmt: skip
    other = replace(own, texts=texts[::-1], conditioning=stored[[2, 1]])
    data = AttackData(data=own, concept=other)
    attack = replace(ATTACK, batch=8, concept_share=0.5, caption_dropout=0.4)
    frozen = AttackBatches(model, attack, data, seed=0)
    live = AttackBatches(model, replace(attack, text_encoder=True), data, seed=0)
    for step in (1, 2, 3):
        (one,), (two,) = frozen.update(step), live.update(step)
        told, read = frozen.conditioning(one), live.conditioning(two)
        torch.testing.assert_close(read["context"], told["context"], rtol=1e-4, atol=1e-5)
        if family == "sdxl":
            torch.testing.assert_close(read["pooled"], told["pooled"], rtol=1e-4, atol=1e-5)
            assert torch.equal(read["time_ids"], told["time_ids"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_a_half_precision_model_is_attacked_and_restored(method, kind):
    """Trained in float32, looked at in its own type, which is how it would be published."""
    model = tiny_model(dtype=kind)
    before, expected = state(model), prediction(model)
    full = tiny_model()
    seen = []

    def evaluation(_: int) -> None:
        seen.append({part.dtype for part in model.denoiser.parameters()})

    attack = attack_by(method, targets=EVERY_TARGET, alpha=8)
    with attacked(model, attack, DATA, evaluate_at=evaluation):
        found = prediction(model)
    with attacked(full, attack, DATA):
        wanted = prediction(full) - prediction(tiny_model())
    assert seen == [{kind}]
    assert ((found - expected) - wanted).norm() < 0.5 * wanted.norm()
    assert_untouched(model, before)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_training_follows_float32(precision):
    found = {}
    for name in ("fp32", precision):
        model = tiny_model()
        with attacked(model, attack_by("full", precision=name), DATA):
            assert {part.dtype for part in model.denoiser.parameters()} == {torch.float32}
            found[name] = prediction(model)
    moved = (found["fp32"] - prediction(tiny_model())).norm()
    assert 0 < (found["fp32"] - found[precision]).norm() < 0.3 * moved


@pytest.mark.parametrize("method", ["lora", "full"])
def test_checkpointing_changes_time_and_memory_alone(method):
    found = []
    for checkpointing in (False, True):
        model = tiny_model()
        before = state(model)
        attack = attack_by(method, gradient_checkpointing=checkpointing, dropout=0.2)
        with attacked(model, attack, DATA):
            found.append(prediction(model))
        assert_untouched(model, before)
    torch.testing.assert_close(found[0], found[1])


def test_a_run_that_diverges_is_an_error_that_names_the_knobs():
    model = tiny_model()
    before = state(model)
    data = replace(DATA, data=PoisonedSet(DATA.data, after=1))
    with (
        pytest.raises(DivergenceError, match="nan at step 2; lower its learning_rate"),
        attacked(model, ATTACK, data, on_step=lambda *_: None),
    ):
        pass
    assert_untouched(model, before)


@pytest.mark.slow
def test_attacks_one_after_the_other_know_nothing_of_each_other():
    """The second of two attacks on one model is what it is on a fresh one."""
    model = tiny_model()
    for method in METHODS:
        with attacked(model, attack_by(method), DATA):
            pass
    with attacked(model, ATTACK, DATA):
        found = prediction(model)
    fresh = tiny_model()
    with attacked(fresh, ATTACK, DATA):
        assert torch.equal(prediction(fresh), found)
