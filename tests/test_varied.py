"""Prompts composed from lists: different ones, without the concepts, the same for the same seed."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from resalign.backend.data.batches import varied_images
from resalign.backend.data.concept import load_preset, preset_names
from resalign.backend.data.varied import MORE, SHIPPED, varied_prompts
from resalign.backend.errors import ConfigError, DataError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durable import VariedConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.stages import Stage
from resalign.backend.plan.toml_text import loads


def test_the_shipped_lists_give_thousands_of_different_prompts():
    prompts = varied_prompts(3000)
    assert len(set(prompts)) == 3000 and varied_prompts(10) == prompts[:10]
    assert varied_prompts(10, seed=1) != prompts[:10]
    assert not any("{" in prompt for prompt in prompts)
    for name in preset_names():  # of the shipped concepts none is asked for
        banned = re.compile(rf"\b{re.escape(load_preset(name).concept().name)}\b", re.IGNORECASE)
        assert not any(banned.search(prompt) for prompt in prompts)


def test_every_entry_comes_about_equally_often(tmp_path):
    path = tmp_path / "lists.toml"
    names = [f"thing {number}" for number in range(200)]
    path.write_text(f'templates = ["{{a}} {{b}}"]\na = {names}\nb = {names}\n')
    prompts = varied_prompts(1000, lists=path)
    counts = Counter(re.match(r"thing \d+", prompt)[0] for prompt in prompts)
    assert len(counts) == 200 and min(counts.values()) >= 3 and max(counts.values()) <= 6


def test_wide_adds_a_thousand_things_that_each_come(tmp_path):
    prompts = varied_prompts(4000, wide=True)
    assert len(set(prompts)) == 4000
    more = loads(MORE.read_text(encoding="utf-8"))["thing"]
    assert len(set(more)) == len(more) > 1000
    assert not set(more) & set(loads(SHIPPED.read_text(encoding="utf-8"))["thing"])
    text = "\n".join(prompts)
    assert all(thing in text for thing in more)
    own = tmp_path / "own.toml"
    own.write_text('templates = ["{thing}"]\nthing = ["a yo-yo of mine"]\n')
    assert "a yo-yo of mine" in varied_prompts(2000, lists=own, wide=True)


def test_words_of_the_plan_are_left_out_beside_the_concept_s_name():
    settings = VariedConfig(images=3000, wide=True, without=("otter", "beaver"))
    concept = Concept("badger", prompts=("a badger",))
    plan = HardeningPlan(concepts=(concept,), varied=settings, before=(Stage(method="erase"),))
    found = varied_images(plan)
    assert found is not None
    assert not re.search(r"\b(otter|beaver|badger)\b", " ".join(found.prompts))
    with pytest.raises(ConfigError, match="empty word"):
        VariedConfig(without=("otter", " "))


def test_lists_of_ones_own_and_words_to_leave_out(tmp_path):
    path = tmp_path / "lists.toml"
    path.write_text('templates = ["{a} and {a}", "only {b}"]\na = ["x", "cat"]\nb = ["y"]\n')
    assert set(varied_prompts(9, lists=path)) == {
        "x and x", "x and cat", "cat and x", "cat and cat", "only y",
    }  # fmt: skip
    assert set(varied_prompts(9, lists=path, without=["Cat"])) == {"x and x", "only y"}
    with pytest.raises(DataError, match="add to its lists"):
        varied_prompts(1, lists=path, without=["cat", "x", "y"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('a = ["x"]', "`templates` is missing"),
        ('templates = ["{b}"]', "list 'b' that is missing"),
        ('templates = ["{a}"]\na = "x"', "a is not a list of texts"), ("a =", "not valid TOML"),
    ],
)  # fmt: skip
def test_mistakes_in_the_lists_are_named(tmp_path, text, said):
    path = tmp_path / "lists.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(said)):
        varied_prompts(1, lists=path)
    with pytest.raises(DataError, match="cannot be read"):
        varied_prompts(1, lists=tmp_path / "none.toml")


def test_only_plans_that_change_all_weights_draw_them():
    concept = Concept("cat", prompts=("a cat",))
    plan = HardeningPlan(concepts=(concept,), varied=VariedConfig(images=40))
    assert varied_images(plan) is None
    found = varied_images(
        HardeningPlan(
            concepts=(concept,), varied=VariedConfig(images=40), before=(Stage(method="erase"),)
        )
    )
    assert found is not None and found.images == len(found.prompts) == 40
    assert not any(re.search(r"\bcats?\b", prompt) for prompt in found.prompts)
