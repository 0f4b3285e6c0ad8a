import dataclasses
import re

import pytest

import resalign as ra
from resalign.backend.plan.field import classes_of
from resalign.backend.plan.file import load_job
from resalign.backend.plan.job import Job
from resalign.backend.plan.presets import PLAN_PRESETS, preset_plan
from resalign.backend.plan.template import EXAMPLE, template, write_template

CONFIG_CLASSES = classes_of(Job)


@pytest.mark.parametrize("preset", PLAN_PRESETS)
def test_a_template_is_a_valid_plan_file_with_the_preset_s_values(tmp_path, preset):
    path = write_template(tmp_path / "plan.toml", preset)
    job = load_job(path)
    expected = preset_plan(preset, [EXAMPLE])
    by_name = {config.name: config for config in job.plan.fine_tunes}
    assert by_name == {config.name: config for config in expected.fine_tunes}
    assert dataclasses.replace(
        job.plan, fine_tunes=(), configurations_per_step=1, concept=None
    ) == (dataclasses.replace(expected, fine_tunes=(), configurations_per_step=1, concept=None))
    assert job.plan.configurations_per_step == expected.configurations_per_step


@pytest.mark.parametrize("preset", PLAN_PRESETS)
@pytest.mark.parametrize("cls", CONFIG_CLASSES)
def test_a_template_names_every_field(preset, cls):
    text = template(preset)
    for field in dataclasses.fields(cls):
        word = rf"(?m)(^|\W){field.name}( = |\]\])|\[plan\.(\w+\.)?{field.name}\]|\[{field.name}\]"
        assert re.search(word, text), f"{cls.__name__}.{field.name}"


def test_the_comment_of_a_field_is_its_help_its_choices_and_its_range():
    lines = template("balanced").splitlines()
    at = lines.index('loss = "ascent"')
    assert lines[at - 3].startswith("# How the concept is unlearned.")
    assert lines[at - 2].startswith("#   ascent: raise the denoising error")
    assert lines[lines.index("rank = 4") - 1].endswith("1 to 1024; usually 4 to 16.")


def test_what_is_commented_out_is_valid_once_it_is_uncommented(tmp_path):
    text = re.sub(r"(?m)^#(?=[^ \n])", "", template("balanced"))
    # of an image set's folder and prompts only one may stand
    text = text.replace('folder = "data/weapons"', "").replace('folder = "data/retain"', "")
    text = text.replace("prompts = []", 'prompts = ["a"]')
    (tmp_path / "plan.toml").write_text(text)
    plan = load_job(tmp_path / "plan.toml").plan
    assert plan.concepts[0].images is not None
    assert plan.forget_set is not None
    assert plan.retain_set is not None
    assert "my own" in {config.name for config in plan.fine_tunes}


def test_odd_texts_survive(tmp_path):
    concept = ra.Concept('a "quoted" \\ name', prompts=("naïve – 日本", "tab\tnew\nline"))
    path = write_template(tmp_path / "p.toml", concepts=[concept], checkpoint="C:\\models\\a b.st")
    job = load_job(path)
    assert job.plan.concepts == (concept,)
    assert job.checkpoint.endswith("C:\\models\\a b.st")


def test_a_file_is_not_overwritten(tmp_path):
    write_template(tmp_path / "plan.toml")
    with pytest.raises(ra.ConfigError, match="exists already"):
        write_template(tmp_path / "plan.toml")
    with pytest.raises(ra.ConfigError, match=r"plan\.toml"):
        write_template(tmp_path / "plan.json")


def test_the_paper_preset_has_the_published_numbers():
    plan = preset_plan("paper", [EXAMPLE])
    assert (plan.outer_steps, plan.learning_rate, plan.adapter.rank) == (160, 2e-4, 4)
    assert (plan.configurations_per_step, plan.simulate, plan.warm_up_steps) == (3, "shared", 0)
    assert plan.solver == ra.SolverConfig(
        method="richardson", iterations=5, gamma=1.0, products="exact"
    )
    assert not plan.regulator.enabled
    assert plan.resilience_weight == 0.8
    assert plan.retain_weight == ra.Ramp(start=1.6, end=2.0, shape="sigmoid", begin=0.5)
    methods = [config.method for config in plan.fine_tunes]
    assert (methods.count("lora"), methods.count("full"), methods.count("dreambooth")) == (
        24,
        24,
        1,
    )
    assert {c.learning_rate for c in plan.fine_tunes} == {1e-4, 1e-5, 1e-6}
    assert {c.steps for c in plan.fine_tunes} == {5, 10, 20, 30}
    assert {c.optimiser for c in plan.fine_tunes} == {"sgd", "adamw"}
    assert all(c.concept_share == 0 for c in plan.fine_tunes)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ra.ConfigError, match="quick"):
        preset_plan("best", [EXAMPLE])
