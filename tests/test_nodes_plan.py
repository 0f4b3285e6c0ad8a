"""Concept List, Fine-Tuning Settings, Hardening Settings, and the plan they make."""

import os
import re
import subprocess
import sys
from pathlib import Path

import fakes_comfy
import pytest

from resalign.backend.data.concept import load_preset
from resalign.backend.data.small_sets import with_small_sets
from resalign.backend.errors import ConfigError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.presets import PLAN_PRESETS, preset_plan

CAT = Concept("cat", ("a cat",))


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """Our modules by name, loaded against the fake host."""
    fakes_comfy.install(monkeypatch, tmp_path)
    return lambda name: fakes_comfy.load_nodes(monkeypatch, name)


@pytest.fixture
def concepts(nodes):
    node = nodes("concepts").ConceptList
    return lambda *args, **more: node.execute(*args, **more).args[0]


@pytest.fixture
def users(nodes):
    node = nodes("settings").FineTuningSettings
    return lambda *args, **more: node.execute(*args, **more).args[0]


@pytest.fixture
def settings(nodes):
    node = nodes("settings").HardeningSettings
    return lambda *args, **more: node.execute(*args, **more).args[0]


@pytest.fixture
def build_plan(nodes):
    return nodes("plan").build_plan


def test_a_preset_is_a_concept_as_shipped(concepts):
    assert concepts("weapons") == (load_preset("weapons").concept(),)


def test_prompts_of_ones_own_are_named_after_the_first(concepts):
    found = concepts("none", "", " a red ball \n\na blue ball\na red ball", 2.0, "a cube")
    assert found == (Concept("a red ball", ("a red ball", "a blue ball"), "a cube", None, 2.0),)


def test_prompts_are_added_to_a_preset_and_a_name_replaces_its_own(concepts):
    (found,) = concepts("weapons", "guns", "a musket")
    assert found.name == "guns"
    assert found.prompts == (*load_preset("weapons").prompts, "a musket")
    assert found.anchor == load_preset("weapons").anchor


def test_a_line_with_a_name_starts_a_further_concept(concepts):
    """With or without text before it; only the name of a preset needs no prompts."""
    ball = Concept("balls", ("a ball",), "", None, 0.5)
    found = concepts("none", "", "a cat\n# balls\na ball\n# drugs", 0.5)
    assert found == (
        Concept("a cat", ("a cat",), "", None, 0.5), ball,
        load_preset("drugs").concept(weight=0.5),
    )  # fmt: skip
    assert concepts("none", "", "# balls\na ball\n#drugs\n", 0.5) == (found[1], found[2])


def test_lists_are_chained_and_keep_their_order(concepts):
    first = concepts("weapons")
    assert [one.name for one in concepts("drugs", previous=first)] == ["weapons", "drugs"]


def test_a_name_that_comes_twice_is_an_error_that_says_it(concepts):
    with pytest.raises(ConfigError, match="'weapons'"):
        concepts("weapons", previous=concepts("weapons"))
    with pytest.raises(ConfigError, match="'ball'"):
        concepts("none", "", "# ball\na ball\n# ball\na red ball")


def test_images_alone_make_a_concept_and_belong_to_one(concepts):
    pictures = ImageSet("folder")
    assert concepts("none", "ball", images=pictures) == (Concept("ball", images=pictures),)
    assert concepts("none", images=pictures)[0].name == "images"
    with pytest.raises(ConfigError, match="of its own"):
        concepts("none", "", "a cat\n# ball\na ball", images=pictures)


def test_an_empty_list_says_what_to_do(concepts):
    with pytest.raises(ConfigError, match="choose a preset"):
        concepts("none", "name", "\n \n")
    with pytest.raises(ConfigError, match="below `# ball`"):
        concepts("none", "", "a cat\n# ball\n")


def test_mistakes_in_the_text_show_before_the_queue_runs(nodes):
    """Only `prompts` is checked: naming an input there switches off the host's own check of it."""
    check = nodes("concepts").ConceptList.validate_inputs
    assert check(prompts="# ball\na ball") is True and check(prompts=None) is True
    assert "without a name after it" in check(prompts="a cat\n# \n")
    assert check.__func__.__code__.co_varnames[:2] == ("cls", "prompts")


@pytest.mark.parametrize("name", list(PLAN_PRESETS))
def test_simulated_users_of_a_preset_are_the_backends(users, build_plan, settings, name):
    """Through either kind of preset input: a choice with its inputs, or a plain one."""
    plan = preset_plan(name, [CAT])
    for value in (users({"preset": name}), users(name, lora=True, learning_rates="1")):
        assert value.fine_tunes == plan.fine_tunes
        assert value.configurations_per_step == plan.configurations_per_step


def test_no_users_are_plain_unlearning(users, settings, build_plan):
    plan = build_plan([CAT], settings("paper"), users("none"))
    assert plan.fine_tunes == () and plan.configurations_per_step == 1
    assert plan.outer_steps == 160


CUSTOM = {
    "preset": "custom", "lora": True, "full": True, "dreambooth": False,
    "learning_rates": "1e-4, 1e-5", "steps": "5; 20", "adamw": True, "sgd": False,
    "ranks": "4,8", "batch": 2, "concept_share": 0.1, "configurations_per_step": 3,
}  # fmt: skip


def test_users_of_ones_own_are_all_combinations(users, build_plan):
    value = users(CUSTOM)
    assert len(value.fine_tunes) == 2 * 2 * 2 * 2 and value.configurations_per_step == 3
    assert value.fine_tunes[0] == FineTuneConfig(
        name="retain/lora/adamw/0.0001x5/rank 4", learning_rate=1e-4, steps=5, batch=2,
        concept_share=0.1,
    )  # fmt: skip
    assert {one.rank for one in value.fine_tunes} == {4, 8}
    assert build_plan([CAT], None, value).fine_tunes == value.fine_tunes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rates": "1e-4, fast"}, "learning_rates: 'fast' is not a number"),
        ({"steps": "5.5"}, "steps: '5.5' is not a whole number"),
        ({"ranks": " , "}, "ranks is empty"),
        ({"lora": False, "full": False}, "at least one method"),
        ({"adamw": False}, "at least one optimiser"),
        ({"configurations_per_step": 17}, "lower it to 16"),
        ({"learning_rates": "7"}, "learning_rate is 7"),
    ],
)
def test_users_that_cannot_be_are_refused(users, change, message):
    with pytest.raises(ConfigError, match=message):
        users(CUSTOM | change)


def test_users_train_on_images_that_are_given(users):
    found = users("balanced", images=ImageSet("pets")).fine_tunes
    assert {one.data for one in found} == {"pets"}
    assert found[0].name.startswith("images/lora/")
    for wrong in (ImageSet(prompts=("a pet",)), ImageSet("pets", caption="a pet")):
        with pytest.raises(ConfigError, match="Fine-Tuning Settings"):
            users("balanced", images=wrong)


@pytest.mark.parametrize(("choice", "name"), [
    ("fast", "quick"), ("balanced", "balanced"), ("paper", "paper"), ("redirect", "redirect"),
    ("edit", "edit"), ("durable", "durable"), ("durable-max", "durable-max"),
])  # fmt: skip
def test_an_untouched_preset_is_the_backends(nodes, settings, build_plan, choice, name):
    """With every input at its default, on the newer and the older kind of host."""
    inputs = nodes("settings").HardeningSettings.define_schema().inputs
    defaults = {one.id: one.default for one in inputs[1:]}
    wanted = preset_plan(name, [CAT])
    if choice == "fast":
        wanted = with_small_sets(wanted)
    for value in ({"preset": choice}, choice):
        assert build_plan([CAT], settings(value, **defaults)) == wanted


def test_a_workflow_saved_with_rank_4_means_the_same_as_before(settings, build_plan):
    """It was the default, and is the preset's own for all that could be chosen then."""
    for choice in ("fast", "balanced", "thorough", "paper", "custom"):
        assert settings(choice, rank=4).preset == settings(choice).preset
        assert build_plan([CAT], settings(choice, rank=4)) == build_plan([CAT], settings(choice))


def test_fast_methods_say_what_they_are_and_promise_no_resilience(nodes, settings, build_plan):
    (combo, *_) = nodes("settings").HardeningSettings.define_schema().inputs
    said = {line.split()[0]: line for line in combo.tooltip.splitlines()}
    for choice in ("edit", "redirect"):
        assert "minutes" in said[choice]
        assert "; fine-tuning brings" in said[choice] and said[choice].endswith("back.")
    for choice, method, steps in (("edit", "closed_form", 1), ("redirect", "redirect", 160)):
        plan = build_plan([CAT], settings(choice))
        assert (plan.method, plan.outer_steps, plan.fine_tunes) == (method, steps, ())
    assert build_plan([CAT], settings("edit", outer_steps=20)).outer_steps == 1
    assert build_plan([CAT], settings("redirect", outer_steps=20)).outer_steps == 20


def test_methods_of_all_weights_say_what_they_do_and_have_inputs_of_their_own(
    nodes, settings, build_plan
):
    (combo, *_) = nodes("settings").HardeningSettings.define_schema().inputs
    assert re.search(r"^durable \(Lasting\): about .* takes much memory", combo.tooltip, re.M)
    plan = build_plan([CAT], settings("durable", varied_images=50, erase_ratio=3.0, outer_steps=20))
    assert [stage.method for stage in plan.before] == ["erase"] and plan.method == "distil"
    assert (plan.varied.images, plan.erase.ratio, plan.outer_steps) == (50, 3.0, 20)
    assert plan.fine_tunes == ()


def test_no_settings_are_the_durable_preset(build_plan, nodes):
    """Nor are settings that nobody touched: hosts take the first choice."""
    for name in ("FineTuningSettings", "HardeningSettings"):
        combo = getattr(nodes("settings"), name).define_schema().inputs[0]
        first = "durable" if name == "HardeningSettings" else "balanced"
        assert combo.options["options"][0].key == first
    retain = ImageSet("keep")
    assert build_plan([CAT], retain=retain) == preset_plan("durable", [CAT], retain_set=retain)
    users = nodes("settings").FineTuningSettings.execute().args[0]
    assert build_plan([CAT], fine_tuning=users).method == "resalign"  # which simulates them


def test_thorough_takes_twice_the_steps_and_steps_scale_the_warm_up(settings, build_plan):
    plan = build_plan([CAT], settings("thorough"))
    assert (plan.outer_steps, plan.warm_up_steps) == (320, 120)
    plan = build_plan([CAT], settings("thorough", outer_steps=16))
    assert (plan.outer_steps, plan.warm_up_steps) == (16, 6)
    assert build_plan([CAT], settings("fast", outer_steps=1)).outer_steps == 1


def test_what_is_set_replaces_the_presets_own(settings, build_plan):
    plan = build_plan([CAT], settings(
        "paper", random_seed=7, resolution=256, rank=8, simulate="full", solver="cg", gamma=0.5,
        products="preset", resilience_weight=0.3, retain_weight=0.0, learning_rate=1e-3,
        precision="bf16", gradient_checkpointing=True,
    ))  # fmt: skip
    own = preset_plan("paper", [CAT])
    assert (plan.seed, plan.resolution, plan.adapter.rank) == (7, 256, 8)
    assert (plan.simulate, plan.precision, plan.gradient_checkpointing) == ("full", "bf16", True)
    assert (plan.solver.method, plan.solver.gamma) == ("cg", 0.5)
    assert plan.solver.products == own.solver.products == "exact"
    assert (plan.resilience_weight, plan.retain_weight) == (0.3, own.retain_weight)


def test_custom_shows_more_and_starts_from_balanced(settings, build_plan, nodes):
    """Its inputs at their defaults change nothing; those of a choice not made are not read."""
    (combo, *_) = nodes("settings").HardeningSettings.define_schema().inputs
    shown = {one.id: one.default for one in combo.options["options"][-1].inputs}
    value = settings({"preset": "custom", **shown})
    assert build_plan([CAT], value) == preset_plan("balanced", [CAT])
    changed = {"harm_loss": "redirect", "harm_cap": 2.0, "regulator": False, "proximal": True,
               "forget_batch": 2}  # fmt: skip
    plan = build_plan([CAT], settings({"preset": "custom", **shown, **changed}))
    assert (plan.harm.loss, plan.harm.cap, plan.proximal, plan.forget_batch) == (
        "redirect", 2.0, True, 2,
    )  # fmt: skip
    assert not plan.regulator.enabled
    assert build_plan([CAT], settings("balanced", **changed)) == preset_plan("balanced", [CAT])


def test_j_beyond_the_pool_is_an_error(settings, users, build_plan):
    """Also where the preset of one node and the pool of another are put together."""
    plan = build_plan([CAT], settings("paper"), users("quick"))
    assert plan.configurations_per_step == 1, "J comes with the pool"


def test_a_stamp_changes_with_what_lies_in_a_folder(nodes, tmp_path, build_plan):
    """By names, sizes and times; of a plan, with any folder it names."""
    stamps, folder = nodes("plan"), tmp_path / "set"
    (folder / "inner").mkdir(parents=True)
    picture = folder / "inner" / "a.png"
    picture.write_bytes(b"12")
    os.symlink(folder, folder / "loop")
    plan = build_plan([Concept("cat", images=ImageSet(str(folder)))])
    seen = [(stamps.folder_stamp(folder), stamps.data_stamp(plan))]
    assert seen == [(stamps.folder_stamp(folder), stamps.data_stamp(plan))]
    for change in (
        lambda: picture.write_bytes(b"123"),
        lambda: os.utime(picture, ns=(1, 1)),
        lambda: picture.rename(picture.with_name("b.png")),
        lambda: (folder / "c.txt").write_text(""),
    ):
        change()
        seen.append((stamps.folder_stamp(folder), stamps.data_stamp(plan)))
    assert len(set(seen)) == 5 and len({both for _, both in seen}) == 5


def test_a_set_named_by_its_contents_is_the_same_when_written_anew(nodes, tmp_path, build_plan):
    """The host empties its temp folder when it starts; the run must go on all the same."""
    stamps, folder = nodes("plan"), tmp_path / "sets" / "0123abcd"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"12")
    plan = build_plan([Concept("cat", images=ImageSet(str(folder)))])
    before = stamps.data_stamp(plan, named=tmp_path / "sets")
    os.utime(folder / "a.png", ns=(1, 1))
    assert stamps.data_stamp(plan, named=tmp_path / "sets") == before
    other = tmp_path / "sets" / "4567"
    folder.rename(other)
    plan = build_plan([Concept("cat", images=ImageSet(str(other)))])
    assert stamps.data_stamp(plan, named=tmp_path / "sets") != before


LIGHT = """
import sys, types, pathlib
sys.path.insert(0, {tests!r})
sys.modules["torch"] = types.ModuleType("torch")
import fakes_comfy
class Put:
    def setitem(self, mapping, key, value): mapping[key] = value
    def delitem(self, mapping, key): del mapping[key]
fakes_comfy.install(Put(), pathlib.Path({base!r}))
sys.modules["torch"] = None
{find}
for name, classes in {{"concepts": ["ConceptList"], "images": ["ImageSet"],
                      "settings": ["FineTuningSettings", "HardeningSettings"]}}.items():
    module = fakes_comfy.load_nodes(Put(), name)
    for one in classes:
        getattr(module, one).define_schema()
heavy = {{"torch", "diffusers", "transformers", "peft", "numpy", "PIL"}}
found = sorted(heavy & {{name for name, module in sys.modules.items() if module}})
assert not found, found
"""


def test_schemas_are_made_without_torch(tmp_path, package_folder):
    """In a process of its own, where an import of torch would fail."""
    folder = package_folder
    find = f"""
import importlib.util
spec = importlib.util.spec_from_file_location(
    "resalign", {str(folder / "__init__.py")!r}, submodule_search_locations=[{str(folder)!r}]
)
sys.modules["resalign"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["resalign"])
"""
    tests = str(Path(fakes_comfy.__file__).parent)
    code = LIGHT.format(tests=tests, base=str(tmp_path), find=find)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
