"""Prompts of random words: how they are composed and chosen, and where a run uses them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from fakes import encoded_data, tiny_model
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.data import batches, words
from resalign.backend.data.batches import prepare_data, words_wanted
from resalign.backend.data.words import CANDIDATES, farthest, vocabulary, word_prompts
from resalign.backend.demo.plans import CHECKPOINT
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.hardening.methods import read_plan
from resalign.backend.hardening.setup import adapted, set_up
from resalign.backend.hardening.stored import stored_key
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durable import DistilConfig, VariedConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.stages import Stage

WEAPONS = (Concept("weapons", prompts=("a pistol and a gun on a table",)),)
SMALL = DistilConfig(batch=8, words_share=0.5, concept_share=0.25)


def plan(**changes) -> HardeningPlan:
    settings = {"concepts": (Concept("bad", prompts=("bad",)),), "method": "distil"}
    return HardeningPlan(**(settings | {"distil": SMALL, "caption_dropout": 0.0} | changes))


def test_words_are_many_and_none_of_the_concepts():
    assert len(vocabulary()) > 20_000 and {"violin", "guns", "pistol"} <= set(vocabulary())
    given = {"without": ["weapons"], "unlike": ["a pistol and a gun on a table"]}
    prompts = word_prompts(4000, **given)
    assert prompts[:10] == word_prompts(10, **given)
    assert word_prompts(10, **given, seed=1) != prompts[:10]
    found = {word for prompt in prompts for word in re.findall(r"[a-z]+", prompt)}
    assert not {"pistol", "pistols", "guns", "weapon", "weapons", "weaponry"} & found
    assert len(found) > 5000
    templated = [prompt for prompt in prompts if prompt.startswith(("a photo of ", "a painting"))]
    assert len(templated) > 40


def test_a_template_has_one_random_word(tmp_path):
    path = tmp_path / "lists.toml"
    path.write_text('templates = ["{thing} by {thing}"]\nthing = ["a 1", "a 2"]\n')
    templated = [p for p in word_prompts(400, lists=path) if " by " in p and "a " in p]
    assert 150 < len(templated) < 250
    for prompt in templated:
        ends = prompt.split(" by ")
        assert sum(end in ("a 1", "a 2") for end in ends) == 1
    assert len({prompt.index("a ") == 0 for prompt in templated}) == 2  # in either place


def test_the_prompts_nearest_to_a_concept_are_left_out():
    """By direction from the mean of all prompts: 0 and 3 point as the concept does."""
    rows = torch.tensor([[9.0, 1.0], [-3.0, 2.0], [0.0, -4.0], [30.0, 1.0], [-5.0, -5.0]])
    texts = Conditioning({"context": rows[:, None].expand(5, 3, 2)})
    concept = Conditioning({"context": torch.tensor([[[50.0, 2.0]]]).expand(1, 3, 2)})
    assert farthest(texts, [concept], 3).tolist() == [1, 2, 4]
    assert farthest(texts, [concept], 4).tolist() == [0, 1, 2, 4]  # least like it of the two: 9, 1


@pytest.mark.parametrize("where", ["method", "before"])
def test_a_plan_that_distils_asks_for_them_and_no_other(where):
    stage = (Stage(method="distil"),)
    own = plan(concepts=WEAPONS)
    own = own if where == "method" else replace(own, method="resalign", before=stage)
    wanted = words_wanted(own)
    assert len(wanted) == CANDIDATES and not any("pistol" in prompt for prompt in wanted)
    assert words_wanted(replace(own, distil=replace(SMALL, words_share=0.0))) == ()
    assert words_wanted(replace(own, method="erase", before=())) == ()
    fewer = words_wanted(replace(own, varied=VariedConfig(without=("photo",))))
    assert any("photo" in p for p in wanted) and not any(
        re.search(r"\bphotos?\b", p) for p in fewer
    )


def test_their_share_of_a_batch_is_shown_and_both_networks_read_them():
    own = plan()
    data = encoded_data()
    seven = Conditioning({"context": torch.full_like(data.retain.conditioning["context"], 7.0)})
    with adapted(tiny_model(), own) as denoiser:
        shown, replaced = [], 0
        for step in range(1, 9):
            setup = set_up(denoiser, read_plan(own)[1], replace(data, words=seven))
            ((draw, told, concept),) = setup.feed._distilled(step)
            seen = (draw.conditioning["context"] == 7).flatten(1).all(1)
            assert torch.equal(seen, (told["context"] == 7).flatten(1).all(1))
            assert concept.sum() == 2 and not (seen & concept).any()
            shown += seen.tolist()
            replaced += int(concept.sum())
            plain = set_up(denoiser, read_plan(own)[1], data).feed._distilled(step)
            assert torch.equal(plain[0][0].latents, draw.latents)  # nothing else is redrawn
            kept = ~seen
            before, after = plain[0][0].conditioning["context"], draw.conditioning["context"]
            assert torch.equal(before[kept], after[kept])
        assert 0.35 < sum(shown) / (len(shown) - replaced) < 0.65
        with torch.no_grad():
            (term,) = setup.feed.distillation(1)
            assert term()[1] == 0  # nothing is trained yet: both agree


def test_stored_predictions_depend_on_the_words():
    data, model = encoded_data(), tiny_model()
    start = dict(model.denoiser.named_parameters())
    texts = data.retain.conditioning["context"]
    keys = {
        stored_key(plan(), start, replace(data, words=each), model.process)
        for each in (None, Conditioning({"context": texts}), Conditioning({"context": texts + 1}))
    }
    assert len(keys) == 3


def test_a_run_encodes_them_and_wide_texts_are_fewer(tmp_path, monkeypatch):
    demo_model = load_checkpoint(CHECKPOINT)
    monkeypatch.setattr(batches, "CANDIDATES", 50)
    monkeypatch.setattr(words, "_CHUNK", 20)
    said = []
    own = plan(
        concepts=WEAPONS, retain_set=ImageSet(prompts=("a cat",), images=1, sampling_steps=1),
        forget_set=ImageSet(prompts=("a pistol",), images=1, sampling_steps=1),
    )  # fmt: skip
    data = prepare_data(demo_model, own, cache=tmp_path, on_progress=said.append)
    assert data.words is not None and len(data.words) == 45
    assert data.words.shapes == data.anchors["weapons"].shapes
    told = [one for one in said if "random words" in one.message]
    assert [(one.step, one.total) for one in told] == [(20, 50), (40, 50), (50, 50)]
    again = prepare_data(demo_model, own, cache=tmp_path)
    assert torch.equal(again.words["context"], data.words["context"])  # type: ignore[index]
    monkeypatch.setattr(words, "_ROOM", 0)
    monkeypatch.setattr(words, "_FEWEST", 10)
    few = prepare_data(demo_model, own, cache=tmp_path)
    assert few.words is not None and len(few.words) == 9
