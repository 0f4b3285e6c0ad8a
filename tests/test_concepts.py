"""Presets, a user's own concepts, and retain prompts."""

from __future__ import annotations

import json

import pytest

from resalign.backend.data.concept import (
    load_concepts,
    load_preset,
    near_neighbours,
    preset_names,
    retain_prompts,
)
from resalign.backend.errors import ConfigError, DataError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet

CATEGORIES = ("drugs", "hate_symbols", "nudity", "self_harm", "violence", "weapons")


def write(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_preset_ships_for_each_usual_safety_category():
    assert preset_names() == CATEGORIES


@pytest.mark.parametrize("name", CATEGORIES)
def test_a_preset_is_complete_and_makes_a_concept(name):
    preset = load_preset(name)

    assert preset.name == name
    assert preset.description and preset.anchor
    assert 20 <= len(preset.prompts) <= 40 and len(preset.benign) >= 10
    assert len(set(preset.prompts)) == len(preset.prompts)
    assert not set(preset.prompts) & set(preset.benign)
    assert preset.concept() == Concept(name, preset.prompts, preset.anchor)


@pytest.mark.parametrize("name", CATEGORIES)
def test_the_prompts_of_a_preset_are_about_adults(name):
    preset = load_preset(name)
    words = {w.strip(",.'\"").lower() for p in preset.prompts for w in p.replace("-", " ").split()}

    assert not words & {
        "child", "children", "kid", "kids", "boy", "boys", "girl", "girls", "teen", "teens",
        "teenager", "teenage", "young", "youth", "baby", "toddler", "minor", "minors", "school",
        "schoolgirl", "schoolboy", "student", "daughter", "son", "loli", "shota",
    }  # fmt: skip


def test_a_preset_takes_images_and_a_weight():
    concept = load_preset("weapons").concept(images=ImageSet(folder="x"), weight=2.0)

    assert concept.images == ImageSet(folder="x") and concept.weight == 2.0


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(ConfigError, match="'weapon'; choose from drugs, hate_symbols"):
        load_preset("weapon")
    assert near_neighbours("weapon") == ()
    assert near_neighbours("weapons") == load_preset("weapons").benign


def test_a_file_holds_one_concept_at_its_top_level(tmp_path):
    path = write(tmp_path, 'name = "hats"\nprompts = ["a hat", "a cap"]\nanchor = "hair"')

    assert load_concepts(path) == (Concept("hats", ("a hat", "a cap"), "hair"),)


def test_a_file_holds_several_concepts_with_folders_relative_to_it(tmp_path):
    path = write(
        tmp_path,
        '[[concepts]]\nname = "hats"\nprompts = ["a hat"]\nweight = 2\n'
        '[[concepts]]\nname = "shoes"\nimages = "shoes"\n',
    )

    assert load_concepts(path) == (
        Concept("hats", ("a hat",), weight=2.0),
        Concept("shoes", images=ImageSet(folder=str(tmp_path / "shoes"))),
    )


@pytest.mark.parametrize("wrap", [lambda entry: entry, lambda entry: [entry]])
def test_json_serves_as_well_as_a_list_or_an_object(tmp_path, wrap):
    entry = {"name": "hats", "prompts": ["a hat"], "benign": ["a bowl"], "description": "x"}

    path = write(tmp_path, json.dumps(wrap(entry)), "mine.json")

    assert load_concepts(path) == (Concept("hats", ("a hat",)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prompts = ["a"]', r"mine\.toml: `name` is missing"),
        ('name = "a"\nprompts = "b"', r"mine\.toml: prompts is not a list of texts"),
        ('name = "a"\nprompts = [1]', "prompts is not a list of texts"),
        ('name = "a"\nprompt = ["b"]', "has no field 'prompt'; fields are name"),
        ('name = 3\nprompts = ["b"]', "name is 3, not a text"),
        ('name = "a"\nprompts = ["b"]\nweight = "x"', "weight is 'x', not a number"),
        ('name = "a"\nprompts = ["b"]\nweight = 0', r"mine\.toml: concept a: weight is 0"),
        ('name = "a"', "concept a: give prompts"),
        ("name = ", r"mine\.toml: is not valid TOML"),
        ("concepts = []", "`concepts` is empty"),
        ('concepts = ["x", "y"]', "concept 1: is 'x', not a table"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_field(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_concepts(write(tmp_path, text))


def test_a_file_that_is_absent_or_no_json_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.toml: cannot be read"):
        load_concepts(tmp_path / "absent.toml")
    with pytest.raises(DataError, match=r"mine\.json: is not valid JSON"):
        load_concepts(write(tmp_path, "{", "mine.json"))


def test_retain_prompts_are_many_and_all_different():
    prompts = retain_prompts()

    assert len(prompts) >= 300 and len(set(prompts)) == len(prompts)
    assert not any(prompt.startswith("#") for prompt in prompts)


def test_retain_prompts_follow_the_seed():
    assert retain_prompts(10) == retain_prompts()[:10]
    assert retain_prompts(10, seed=1) == retain_prompts(10, seed=1) != retain_prompts(10)


def test_more_retain_prompts_than_there_are_is_an_error():
    with pytest.raises(DataError, match=r"5000 retain prompts asked for; 3\d\d are shipped"):
        retain_prompts(5000)


def test_retain_prompts_keep_clear_of_the_unsafe_categories():
    unsafe = {prompt for name in CATEGORIES for prompt in load_preset(name).prompts}

    assert not unsafe & set(retain_prompts())
    assert not [
        p for p in retain_prompts() if any(w in p for w in ("gun", "nude", "blood", "drug"))
    ]
