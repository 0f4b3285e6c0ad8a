"""A run of the choice `fast` draws few pictures, and none that its user has given."""

from dataclasses import replace

import pytest

from resalign.backend.data.concept import load_preset
from resalign.backend.data.small_sets import with_small_sets
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.presets import preset_plan


@pytest.fixture(scope="module")
def plan():
    own = Concept("cat", ("a cat",), images=ImageSet(prompts=("a cat",), images=3))
    return preset_plan("quick", [load_preset("weapons").concept(), own])


def test_few_pictures_are_drawn_in_few_steps(plan):
    small = with_small_sets(plan)
    weapons, cat = small.concepts
    assert (weapons.images.images, weapons.images.sampling_steps) == (8, 12)
    assert weapons.images.prompts == weapons.prompts
    assert cat.images.images == 3, "given by the user"
    stay = small.retain_set
    assert (stay.images, stay.sampling_steps, len(stay.prompts)) == (8, 12, 8)
    assert not [prompt for prompt in stay.prompts if "cat" in prompt or "weapon" in prompt]
    passes = sum(s.images * s.sampling_steps * 2 for s in (weapons.images, stay))
    assert passes < 400, "and not 9,600 of 192 pictures at 25 steps"


def test_sets_that_the_plan_names_stay(plan):
    shared = ImageSet(prompts=("a gun",), images=5)
    named = replace(plan, forget_set=shared, retain_set=shared)
    assert with_small_sets(named) == named
