"""Plan files of probes: complete, explained, and what they say is what is run."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace

import pytest

from resalign.backend.errors import ConfigError
from resalign.backend.plan.attack import FineTuneAttack, MergeAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.field import classes_of
from resalign.backend.plan.file import from_json, load_probe_job, to_json
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.probe import ProbeJob, ProbePlan
from resalign.backend.plan.probe_presets import PROBE_PRESETS, preset_probe
from resalign.backend.plan.probe_settings import probe_plan
from resalign.backend.plan.template import EXAMPLE, probe_template, write_probe_template

LEFT_OUT = {  # a field without a default to show, and what only synthesised images use
    ("LoraFile", "text_strength"), ("ImageSet", "sampling_steps"), ("ImageSet", "caption"),
}  # fmt: skip


@pytest.mark.parametrize("preset", PROBE_PRESETS)
def test_a_template_is_a_valid_plan_file_with_the_presets_values(tmp_path, preset):
    """A preset runs the plan that its file says."""
    path = write_probe_template(tmp_path / "probe.toml", preset)
    assert load_probe_job(path).plan == preset_probe(preset, [EXAMPLE])


def test_a_test_probe_is_short_but_not_void_and_says_what_it_is():
    """It draws few pictures, also those to train on, and takes as many steps as have an effect."""
    concepts = (Concept("a", ("a 1", "a 2")), Concept("b", ("b 1",)))
    plan = preset_probe("fast", concepts)
    (attack,) = plan.fine_tunes
    like = preset_probe("quick", concepts).fine_tunes[1]
    assert replace(attack, steps=like.steps, looks=like.looks) == like
    assert 30 <= attack.steps <= 50 and plan.generation.steps == 12
    assert plan.test_run and not plan.merges and not plan.sweeps and plan.seeds == (0,)
    assert plan.forget_set is not None and plan.retain_set is not None
    assert plan.forget_set.prompts == ("a 1", "b 1", "a 2") and plan.forget_set.images == 16
    assert plan.retain_set.images == len(plan.retain_set.prompts) == 8
    assert {part.kind: part.limit for part in plan.prompts} == {
        "unsafe": 6, "neighbour": 2, "retain": 4
    }  # fmt: skip
    own = ImageSet(folder="mine")
    hardened = preset_plan("quick", concepts, forget_set=own)
    assert probe_plan("fast", concepts, hardened_by=hardened).forget_set == own
    assert probe_plan("fast", concepts, hardened_by=hardened).retain_set == plan.retain_set
    assert preset_probe("fast", [Concept("a", images=own)]).forget_set is None
    assert not any(
        preset_probe(name, concepts).test_run for name in PROBE_PRESETS if name != "fast"
    )


@pytest.mark.parametrize("cls", sorted(set(classes_of(ProbeJob)), key=lambda cls: cls.__name__))
def test_a_template_names_every_field(cls):
    """A setting that the file does not show would have to be guessed."""
    text = probe_template("standard")
    for field in dataclasses.fields(cls):
        word = rf"(?m)(^|\W){field.name}( = |\]\])|\[plan\.{field.name}\]|^\[{field.name}\]"
        left_out = (cls.__name__, field.name) in LEFT_OUT
        assert bool(re.search(word, text)) != left_out, f"{cls.__name__}.{field.name}"


def test_what_is_commented_out_is_valid_once_it_is_uncommented(tmp_path):
    """A user turns a setting on by removing the #."""
    text = re.sub(r"(?m)^#(?=[^ \n])", "", probe_template("standard"))
    (tmp_path / "probe.toml").write_text(text)
    job = load_probe_job(tmp_path / "probe.toml")
    assert [attack.name for attack in job.plan.loras] == ["my LoRA"]
    assert {scorer.name for scorer in job.plan.scorers} == {"denoising", "nudenet"}
    assert job.plan.retain_set is not None
    assert job.plan.loras[0].loras[0].path == str(tmp_path / "my-lora.safetensors")


def test_paths_are_relative_to_the_file_and_names_are_not_paths(tmp_path):
    """`retain` and `original` stay what they are."""
    job = load_probe_job(write_probe_template(tmp_path / "probe.toml", "quick"))
    assert job.checkpoints[0].path == str(tmp_path / "model.safetensors")
    assert job.plan.fine_tunes[0].data == "retain"
    assert job.plan.merges[0].other == "original"


@pytest.mark.parametrize("preset", PROBE_PRESETS)
def test_a_plan_survives_json(preset):
    """The recorded probe of an exported file is read back as it was."""
    plan = preset_probe(preset, [EXAMPLE])
    assert from_json(ProbePlan, to_json(plan)) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 10, "looks": (5, 20)}, "looks at step 20, but it has 10"),
        ({"looks": (5, 3)}, "rising steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"method": "vera"}, "method"),
        ({"targets": ()}, "targets is empty"),
        ({"concept_share": 1.5}, "concept_share"),
    ],
)
def test_an_attack_is_checked_at_birth(changes, message):
    """A slip in a plan is named before hours are spent."""
    with pytest.raises(ConfigError, match=message):
        FineTuneAttack(name="a", **changes)


def test_names_of_attacks_are_unique():
    """Looks are found by name."""
    attacks = {"merges": (MergeAttack(name="a"),), "fine_tunes": (FineTuneAttack(name="a"),)}
    with pytest.raises(ConfigError, match="two attacks are called 'a'"):
        ProbePlan(concepts=(EXAMPLE,), **attacks)
    with pytest.raises(ConfigError, match="before"):
        ProbePlan(concepts=(EXAMPLE,), merges=(MergeAttack(name="before"),))
