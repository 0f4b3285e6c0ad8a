"""Attackers' data: encoded once, by the original, and what flip and captions make of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes_data import Calls, save_pictures, tiny_family

from resalign.backend.data import latents as latents_module
from resalign.backend.data.latents import encode_image_set, mirror_latents
from resalign.backend.model.encode import encode_images, encode_prompts
from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.probe import attack_data as attack_data_module
from resalign.backend.probe.attack import attacked
from resalign.backend.probe.attack_data import attack_data


@pytest.fixture
def folders(tmp_path):
    """Folders `own` (2 pictures), `bad` and `worse` (2 each), `keep` (3)."""
    for name, count in (("own", 2), ("bad", 2), ("worse", 2), ("keep", 3)):
        save_pictures(tmp_path / name, {f"{i}.png": f"{name} {i}" for i in range(count)})
    return tmp_path


def plan_of(folders, *attacks: FineTuneAttack) -> ProbePlan:
    return ProbePlan(
        concepts=(
            Concept("bad", images=ImageSet(str(folders / "bad"))),
            Concept("worse", images=ImageSet(str(folders / "worse")), weight=3.0),
        ),
        retain_set=ImageSet(str(folders / "keep")),
        fine_tunes=attacks,
    )


def test_each_attack_gets_its_sets_and_no_other(folders):
    own = str(folders / "own")
    benign = FineTuneAttack(name="benign", data=own)
    mixed = FineTuneAttack(name="mixed", concept_share=0.2)
    alone = FineTuneAttack(name="alone", data="nowhere", concept_share=1.0)
    booth = FineTuneAttack(name="booth", data=own, prior_data="retain")
    found = attack_data(tiny_family(), plan_of(folders, benign, mixed, alone, booth))

    data = found.for_attack(benign)
    assert data.data is found.sets[own] and data.concept is None and data.prior is None
    data = found.for_attack(mixed)
    assert data.data is found.retain and data.concept is found.concept
    data = found.for_attack(alone)
    assert data.data is None and data.concept is found.concept
    data = found.for_attack(booth)
    assert data.data is found.sets[own] and data.prior is found.retain
    assert (len(found.retain), len(found.concept), len(found.sets[own])) == (3, 4, 2)


def test_concepts_are_drawn_by_their_weights(folders):
    found = attack_data(tiny_family(), plan_of(folders))
    (bucket,) = found.concept.buckets
    texts = [found.concept.texts[index] for index in bucket.captions]
    share = sum(w for w, text in zip(bucket.weights, texts, strict=True) if "worse" in text)
    assert float(share / bucket.weights.sum()) == pytest.approx(0.75)


def test_each_folder_is_encoded_once(folders, monkeypatch):
    calls = Calls(encode_image_set)
    monkeypatch.setattr(attack_data_module, "encode_image_set", calls)
    own = str(folders / "own")
    attacks = [FineTuneAttack(name=str(i), data=own, prior_data=own, flip=i > 1) for i in range(4)]
    attack_data(tiny_family(), plan_of(folders, *attacks))
    assert calls.count == 5  # two concepts, retain, own, and own mirrored


def test_flipped_pictures_are_mirrored_before_the_vae(folders, tmp_path):
    """Exactly what the VAE makes of the mirrored picture; the cache tells the two apart."""
    model, folder = tiny_family(), ImageSet(str(folders / "own"))
    plain = encode_image_set(model, folder, cache=tmp_path / "cache")
    flipped = encode_image_set(model, folder, cache=tmp_path / "cache", mirrored=True)
    again = encode_image_set(model, folder, cache=tmp_path / "cache", mirrored=True)
    image = latents_module.open_image(folders / "own" / "0.png")
    pixels = latents_module.frame(image, model.resolution).pixels
    expected = encode_images(model, pixels.flip(-1)[None])[0]
    assert torch.equal(flipped.buckets[0].latents[0], expected)
    assert torch.equal(again.buckets[0].latents, flipped.buckets[0].latents)
    assert not torch.equal(flipped.buckets[0].latents, plain.buckets[0].latents)
    assert flipped.texts == plain.texts


def test_a_synthesised_set_is_mirrored_as_latents_and_made_once(folders, monkeypatch):
    calls = Calls(latents_module.generate_latents)
    monkeypatch.setattr(latents_module, "generate_latents", calls)
    keep = ImageSet(prompts=("a cat",), images=2, sampling_steps=2)
    attack = FineTuneAttack(name="flip", flip=True)
    plan = replace(plan_of(folders, attack), retain_set=keep)
    found = attack_data(tiny_family(), plan)
    assert calls.count == 1
    data = found.for_attack(attack)
    assert data.mirrored and data.data is not None
    (bucket,) = data.data.buckets
    assert torch.equal(bucket.latents[:2], found.retain.buckets[0].latents)
    assert torch.equal(bucket.latents[2:], bucket.latents[:2].flip(-1))
    assert torch.equal(bucket.weights[:2], bucket.weights[2:])
    twice = mirror_latents(mirror_latents(found.retain))
    assert torch.equal(twice.buckets[0].latents, found.retain.buckets[0].latents)


def test_captions_are_read_by_the_attacked_checkpoint(folders):
    """An equal text encoder gives equal bits, another gives its own embeddings; latents stay."""
    model, other = tiny_family(), tiny_family()
    with torch.no_grad():
        for weight in other.text_encoders[0].parameters():
            weight.mul_(1.1)
    attack = FineTuneAttack(name="flip", data=str(folders / "own"), concept_share=0.5, flip=True)
    found = attack_data(model, plan_of(folders, attack))
    same = found.captioned_by(model)
    assert torch.equal(same.retain.conditioning["context"], found.retain.conditioning["context"])
    data, theirs = found.for_attack(attack), found.captioned_by(other).for_attack(attack)
    for before, after in ((data.data, theirs.data), (data.concept, theirs.concept)):
        assert before is not None and after is not None
        expected = encode_prompts(other, list(after.texts))["context"]
        torch.testing.assert_close(after.conditioning["context"], expected)
        assert not torch.equal(after.conditioning["context"], before.conditioning["context"])
        assert torch.equal(after.buckets[0].latents, before.buckets[0].latents)


def test_what_was_encoded_trains_with_everything_on(folders):
    """From pictures to a fine-tuned model with flips, prior, concept and text encoders."""
    model = tiny_family("sdxl")
    attack = FineTuneAttack(
        name="all", data=str(folders / "own"), concept_share=0.5, flip=True, prior_data="retain",
        text_encoder=True, text_encoder_learning_rate=1e-3, steps=2, caption_dropout=0.2,
    )  # fmt: skip
    data = attack_data(model, plan_of(folders, attack)).for_attack(attack)
    read = encode_prompts(model, ["own 0"])
    losses: list[float] = []
    with attacked(model, attack, data, on_step=lambda _, loss: losses.append(loss)):
        inside = encode_prompts(model, ["own 0"])
    assert len(losses) == 2
    assert not torch.equal(inside["context"], read["context"])
    assert torch.equal(encode_prompts(model, ["own 0"])["context"], read["context"])
