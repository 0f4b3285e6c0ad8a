"""The tab's forms become requests for the worker, or errors that say what to do."""

import json
import math
from datetime import datetime

import pytest
from fakes_webui import FakeHost

from resalign.backend.data.concept import load_preset
from resalign.backend.data.small_sets import with_small_sets
from resalign.backend.demo.plans import CHECKPOINT
from resalign.backend.errors import ConfigError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import from_json
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.presets import plan_preset, preset_plan
from resalign.backend.worker.requests import CheckRequest, parse_request
from resalign.scripts.resalign_webui import forms, thoroughness
from resalign.scripts.resalign_webui import host as hosts

NOW = datetime(2026, 1, 31, 14, 5, 9)


@pytest.fixture
def host(tmp_path):
    made = FakeHost(tmp_path / "host")
    (made.checkpoint_folder() / "model.safetensors").symlink_to(CHECKPOINT)
    return made


@pytest.fixture
def request_of(host):
    def make(**values):
        values = {"checkpoint": "model.safetensors", "concepts": ["weapons"], **values}
        found = forms.harden_request(values, host, NOW)
        return found, from_json(HardeningPlan, json.loads(json.dumps(found["plan"])))

    return make


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"lora_unet_a.lora_up.weight": [4, 4]}, "LoRA"),
        ({"model.diffusion_model.input_blocks.0.0.weight": [320, 9, 3, 3]}, "."),
    ],
)
def test_a_file_that_cannot_be_hardened_is_refused_at_the_click(host, request_of, tensors, says):
    """And not after the host's model was unloaded."""
    header = {"__metadata__": {}}
    for name, shape in tensors.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [0, 2 * math.prod(shape)]}
    text = json.dumps(header).encode()
    data = bytes(2 * sum(math.prod(shape) for shape in tensors.values()))
    wrong = host.checkpoint_folder() / "wrong.safetensors"
    wrong.write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(ConfigError, match=f"checkpoint: .*{says}"):
        request_of(checkpoint="wrong.safetensors")


def test_a_page_left_as_it_is_asks_for_the_durable_preset(request_of, host):
    found, plan = request_of()
    assert plan == preset_plan("durable", [load_preset("weapons").concept()])
    assert found["checkpoint"] == str(host.checkpoint_folder() / "model.safetensors")
    folder = host.output_folder() / "resalign" / "runs" / "weapons Lasting 2026-01-31 14.05.09"
    assert found["run_folder"] == str(folder)
    rest = {name: found[name] for name in ("job", "device", "preview_every", "show_pictures")}
    assert rest == {"job": "harden", "device": "auto", "preview_every": 10, "show_pictures": False}


def test_a_test_run_draws_few_pictures_in_few_steps(request_of):
    """As its time says: 192 pictures of 25 steps took 16 minutes before the first loss."""
    _, plan = request_of(preset="fast")
    assert plan == with_small_sets(plan)
    sets = [plan.concepts[0].images or plan.forget_set, plan.retain_set]
    assert all(one.images <= 8 and one.sampling_steps <= 12 for one in sets)
    _, own = request_of(preset="fast", concept_images=30, concepts=["weapons"])
    assert own.concepts[0].images.images == 30, "what was typed is kept"


def test_settings_change_what_the_preset_says(request_of):
    _, plan = request_of(
        preset="thorough", seed=7, rank=8, resolution=256, resilience_weight=0.5, solver="cg",
        precision="bf16", gradient_checkpointing=True,
    )  # fmt: skip
    assert (plan.outer_steps, plan.warm_up_steps) == (320, 120)
    assert (plan.seed, plan.adapter.rank, plan.resolution) == (7, 8, 256)
    assert (plan.resilience_weight, plan.solver.method) == (0.5, "cg")
    assert (plan.precision, plan.gradient_checkpointing) == ("bf16", True)


@pytest.mark.parametrize("name", ["durable", "durable-max"])
def test_the_methods_of_all_weights_are_presets_here_too(request_of, name):
    """With inputs of their own; the learning rate is that of what the last stage trains."""
    concepts = [load_preset("weapons").concept()]
    assert request_of(preset=name)[1] == preset_plan(name, concepts)
    _, plan = request_of(
        preset=name, varied_images=50, erase_ratio=3.0, distil_batch=4, teacher="bf16",
        teacher_waits=True, learning_rate=1e-4,
    )  # fmt: skip
    assert (plan.varied.images, plan.erase.ratio, plan.distil.batch) == (50, 3.0, 4)
    assert (plan.distil.teacher, plan.distil.teacher_waits) == ("bf16", True)
    assert (plan.learning_rate, plan.distil.learning_rate) == (2e-4, 1e-4)
    _, own = request_of(checkpoint=hosts.DEMO, preset=name)
    assert own.distil.learning_rate == 1.5e-3 and own.varied.lists
    assert not own.fine_tunes
    assert own.outer_steps == (300 if name == "durable" else 600)
    assert own.distil.ema == (0 if name == "durable" else 0.98)


@pytest.mark.parametrize("name", ["redirect", "edit"])
def test_the_fast_methods_are_presets_here_too(request_of, name):
    """The demo runs with its own rates; nobody is simulated, whoever is chosen."""
    assert request_of(preset=name)[1] == preset_plan(name, [load_preset("weapons").concept()])
    own = plan_preset(name).fields
    for users in ("preset", "none"):
        _, plan = request_of(checkpoint=hosts.DEMO, preset=name, users=users)
        assert {field: getattr(plan, field) for field in own} == own
        assert plan.fine_tunes == () and plan.learning_rate == 8e-3
        assert plan.outer_steps == (1 if name == "edit" else 120)


def test_a_check_looks_at_the_run_that_harden_would_start(request_of, host):
    values = {"checkpoint": "model.safetensors", "concepts": ["weapons"], "micro_batch": 2}
    found = forms.check_request({**values, "memory_budget": 7.5}, host, NOW)
    run = request_of(**values)[0]
    assert found == {"job": "check", "budget": 7.5, **{
        name: run[name] for name in ("checkpoint", "plan", "run_folder", "device", "prediction")
    }}  # fmt: skip
    assert found["plan"]["micro_batch"] == 2 and isinstance(parse_request(found), CheckRequest)


def test_concepts_of_ones_own_stand_beside_shipped_ones_each_with_its_strength(request_of):
    _, plan = request_of(
        own_concepts="# red ball\na red ball\na crimson ball", strengths="red ball: 2, weapons: .5"
    )
    weapons, ball = plan.concepts
    assert (weapons.name, weapons.weight) == ("weapons", 0.5)
    assert ball == Concept("red ball", ("a red ball", "a crimson ball"), weight=2.0)
    _, plan = request_of(concepts=["hate_symbols"], strengths="hate symbols: 2")
    assert [(one.name, one.weight) for one in plan.concepts] == [("hate_symbols", 2.0)]


def test_pictures_come_from_folders_or_are_drawn(request_of, tmp_path):
    (tmp_path / "guns").mkdir()
    _, plan = request_of(concept_folder=str(tmp_path / "guns"), retain_images=12)
    assert plan.concepts[0].images == ImageSet(folder=str(tmp_path / "guns"))
    assert plan.retain_set.images == 12 and len(plan.retain_set.prompts) > 12
    users = {"concept_images": 9, "users_folder": str(tmp_path / "guns")}
    _, plan = request_of(preset="balanced", **users)
    assert plan.concepts[0].images.prompts == load_preset("weapons").prompts
    assert {user.data for user in plan.fine_tunes} == {str(tmp_path / "guns")}
    with pytest.raises(ConfigError, match=r"durable simulates nobody.*balanced"):
        request_of(**users)


def test_simulated_users_can_be_left_out_or_written_down(request_of):
    assert request_of(users="none")[1].fine_tunes == ()
    _, plan = request_of(
        preset="balanced", users="custom", methods=["lora", "full"], optimisers=["sgd"],
        learning_rates="1e-4",
        user_steps="5, 9", user_ranks="2", concept_share=0.1, users_per_step=3, user_batch=2,
    )  # fmt: skip
    assert {(user.method, user.steps) for user in plan.fine_tunes} == {
        ("lora", 5), ("lora", 9), ("full", 5), ("full", 9),
    }  # fmt: skip
    assert plan.configurations_per_step == 3 and plan.fine_tunes[0].concept_share == 0.1


def test_the_demo_has_settings_of_its_own_and_draws_its_pictures(request_of):
    found, plan = request_of(checkpoint=hosts.DEMO, preset="fast", seed=3)
    assert found["checkpoint"] == "demo"
    assert (plan.outer_steps, plan.warm_up_steps, plan.seed) == (20, 10, 3)
    assert plan.concepts[0].images.prompts and plan.retain_set.prompts
    assert request_of(checkpoint=hosts.DEMO, outer_steps=4)[1].outer_steps == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpoint": "/etc/passwd"}, "not in the list"),
        ({"checkpoint": "../outputs/model.safetensors"}, "not in the list"),
        ({"checkpoint": None}, "choose one from the list"),
        ({"concepts": []}, "tick a category"),
        ({"concepts": ["kittens"]}, "none of"),
        ({"concepts": "weapons"}, "expected a list"),
        ({"concepts": [["weapons"]]}, "none of"),
        ({"own_concepts": "# weapons\na gun"}, "two concepts are called 'weapons'"),
        ({"own_concepts": 5}, "expected a text"),
        ({"own_concepts": "x" * 20_001}, "at most 20000"),
        ({"own_concepts": "a\0b"}, "not valid in text"),
        ({"run_name": "\ud800"}, "not valid in text"),
        ({"concept_folder": "/" + "x" * 5000}, "cannot be a folder"),
        ({"concept_folder": "~nobody-of-that-name/x"}, "cannot be a folder"),
        ({"strengths": "guns: 2"}, "name of a chosen concept"),
        ({"strengths": "weapons: much"}, "not a number"),
        ({"strengths": "weapons: nan"}, "not a number"),
        ({"strengths": "weapons: -1"}, "from 0.01 to 100"),
        ({"preset": "custom"}, "choose from fast"),
        ({"seed": -1}, "from 0"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": "1"}, "not a number"),
        ({"seed": float("inf")}, "not a number"),
        ({"rank": True}, "not a number"),
        ({"resolution": 100}, "multiple of 8"),
        ({"gradient_checkpointing": "yes"}, "expected yes or no"),
        ({"solver": "magic"}, "choose from preset, first_order"),
        ({"device": "cuda; rm -rf /"}, "use auto, cpu"),
        ({"preview_every": -1}, "from 0"),
        ({"run_name": "../../elsewhere"}, "not a file name"),
        ({"run_name": "漢" * 100}, "name of the run takes 300 bytes: use 200 at most"),
        ({"run_name": "/abs"}, "not a file name"),
        ({"run_name": "C:x"}, "not a file name"),
        ({"concept_folder": "relative"}, "absolute path"),
        ({"concept_folder": "/nowhere/at/all"}, "does not exist"),
        ({"users": "custom", "methods": ["lora"], "learning_rates": "fast"}, "is not a number"),
        ({"users": "custom", "methods": []}, "at least one method"),
        ({"checkpoint": hosts.DEMO, "concepts": ["nudity"]}, "tick weapons alone"),
        ({"checkpoint": hosts.DEMO, "own_concepts": "a cat"}, "tick weapons alone"),
        ({"checkpoint": hosts.DEMO, "retain_folder": "/tmp"}, "leave the folders empty"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(request_of, values, message):
    if "methods" in values:
        values = {"optimisers": ["adamw"], **values}
    with pytest.raises(ConfigError, match=message):
        request_of(**values)


def test_one_folder_of_pictures_cannot_belong_to_two_concepts(request_of, tmp_path):
    with pytest.raises(ConfigError, match="belongs to one concept"):
        request_of(concepts=["weapons", "nudity"], concept_folder=str(tmp_path))


def test_over_a_network_only_folders_of_the_host_and_its_owner_can_be_typed(tmp_path, monkeypatch):
    host = FakeHost(tmp_path / "host", remote=True)
    inside, outside = host.output_folder() / "pictures", tmp_path / "private"
    inside.mkdir()
    outside.mkdir()
    (host.output_folder() / "link").symlink_to(outside)
    (tmp_path / "host" / "outputs-private").mkdir()

    assert hosts.typed_folder(str(inside), "x", host) == str(inside)
    for wrong in (outside, host.output_folder() / "link", inside / ".." / ".." / "..",
                  tmp_path / "host" / "outputs-private", tmp_path / "not there"):  # fmt: skip
        with pytest.raises(ConfigError, match=hosts.FOLDERS_VARIABLE) as error:
            hosts.typed_folder(str(wrong), "x", host)
        assert str(tmp_path) not in str(error.value), "it does not say what is there"
    monkeypatch.setenv(hosts.FOLDERS_VARIABLE, str(outside))
    assert hosts.typed_folder(str(outside), "x", host) == str(outside)
    host.is_remote = False
    monkeypatch.delenv(hosts.FOLDERS_VARIABLE)
    assert hosts.typed_folder(f'"{outside}" ', "x", host) == str(outside)


@pytest.mark.parametrize("name", thoroughness.PRESETS)
def test_the_line_below_the_presets_says_how_long_the_demo_takes(request_of, name):
    """Not the hour of a full-size checkpoint."""
    plan = request_of(checkpoint=hosts.DEMO, preset=name)[1]
    shown = thoroughness.preset_line(name, hosts.DEMO)
    assert f"({plan.outer_steps} step" in shown and "hour" not in shown
    assert "the demo's own" not in thoroughness.preset_line(name, "mine.safetensors")
