"""Prompts composed from lists: different ones, without the concepts, the same for the same seed."""

from __future__ import annotations

import re

import pytest

from resalign.backend.data.batches import varied_images
from resalign.backend.data.concept import load_preset, preset_names
from resalign.backend.data.varied import varied_prompts
from resalign.backend.errors import DataError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durable import VariedConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.stages import Stage


def test_the_shipped_lists_give_thousands_of_different_prompts():
    prompts = varied_prompts(3000)
    assert len(set(prompts)) == 3000 and varied_prompts(10) == prompts[:10]
    assert varied_prompts(10, seed=1) != prompts[:10]
    assert not any("{" in prompt for prompt in prompts)
    for name in preset_names():  # of the shipped concepts none is asked for
        banned = re.compile(rf"\b{re.escape(load_preset(name).concept().name)}\b", re.IGNORECASE)
        assert not any(banned.search(prompt) for prompt in prompts)


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
