"""Attacks on text encoders and in half precision; checkpointing; divergence; runs in a row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes_attacks import (
    ATTACK,
    DATA,
    EVERY_TARGET,
    METHODS,
    assert_untouched,
    attack_by,
    prediction,
    state,
)
from fakes_data import tiny_family
from marks import slow

from fakes import PoisonedSet, random_set, tiny_model
from resalign.backend.errors import DivergenceError
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.model.encode import encode_prompts
from resalign.backend.probe.attack import attacked
from resalign.backend.probe.attack_batches import AttackBatches
from resalign.backend.probe.attack_data import AttackData


@pytest.mark.parametrize("method", ["lora", "full", *slow("dora", "loha", "lokr")])
def test_the_text_encoder_is_trained_if_asked_and_only_then(method):
    """Prompts are encoded differently inside; without it, and afterwards, bit for bit as before."""
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
