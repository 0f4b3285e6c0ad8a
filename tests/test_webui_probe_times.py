"""The time that the page Probe states before a start: of the probe that its form asks for."""

import json
from datetime import date

import pytest
from fakes_webui import host_with_a_checkpoint, write_checkpoint, write_header, write_run

from resalign.backend.data.concept import load_preset
from resalign.backend.demo.plans import demo_probe, prompted_plan
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durations import COMMON, words_of
from resalign.backend.plan.file import from_json, to_json
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.plan.probe_presets import PROBE_PRESETS
from resalign.backend.plan.probe_settings import probe_plan
from resalign.backend.probe.cost import ProbeCost, image_sets, plan_cost
from resalign.backend.probe.prompts import plan_requests
from resalign.backend.probe.tasks import plan_tasks
from resalign.scripts.resalign_webui import host as hosts
from resalign.scripts.resalign_webui import measure_forms, pace, probe_times
from resalign.scripts.resalign_webui.host import DEMO
from resalign.scripts.resalign_webui.measure_forms import THE_RUN
from resalign.scripts.resalign_webui.runs import read_runs

CAT = Concept("cat", ("a cat", "a kitten"))
WEAPONS = load_preset("weapons").concept()


@pytest.fixture
def tab(tmp_path):
    return host_with_a_checkpoint(tmp_path)


def run_of(host, name, preset="balanced", concepts=(CAT,)):
    plan = to_json(preset_plan(preset, concepts))
    source = str(host.checkpoint_folder() / "model.safetensors")
    write_run(hosts.runs_folder(host) / name, plan, source, plan["outer_steps"])
    return hosts.runs_folder(host) / name


def line(actions, **values):
    start = {"attacks": "quick", "probe_run": "none", "original": "model.safetensors"}
    asked = {**start, **values}
    return actions.attacks_line(*(asked.get(name) for name in probe_times.FIELDS))


def drawing_and_training(cost):
    return round(cost.drawing), round(cost.training)


@pytest.mark.parametrize(
    "values",
    [
        {}, {"attack_steps": 10, "probe_images": 3, "sampling_steps": 8}, {"attacks": "standard"},
        {"attacks": "fast"}, {"probe_concepts": ["weapons", "drugs"]}, {"sibling": "the original"},
        {"oracle": "third.safetensors", "plain": "fourth.safetensors"},
    ],
)  # fmt: skip
def test_the_passes_are_those_of_the_probe_that_the_button_starts(tab, values):
    host, _ = tab
    run_of(host, "mine")
    for name in ("third", "fourth"):
        write_header(host.checkpoint_folder() / f"{name}.safetensors", {})
    runs = read_runs(hosts.runs_folder(host))
    asked = {"attacks": "quick", "probe_run": "mine", **values}
    request = measure_forms.probe_request(asked, host, runs)
    plan = from_json(ProbePlan, request["plan"], where="plan")
    names = [each["name"] for each in request["checkpoints"]]
    cost = ProbeCost(plan, plan_requests(plan), plan_tasks(plan, names), image_sets(plan))
    said = probe_times.passes_of(asked, runs[0], host, demo=False)
    assert (said.drawing, said.training) == drawing_and_training(cost)


@pytest.mark.parametrize("name", PROBE_PRESETS)
@pytest.mark.parametrize("demo", [False, True])
def test_each_choice_has_the_time_of_its_passes_before_a_concept_is_chosen(tab, name, demo):
    _, actions = tab
    plan = probe_plan(name, prompted_plan().concepts if demo else [WEAPONS])
    cost = plan_cost(demo_probe(plan) if demo else plan)
    found = probe_times.passes_of({"attacks": name}, None, tab[0], demo=demo)
    assert (found.drawing, found.training) == drawing_and_training(cost)
    if not demo:
        said = words_of(found.seconds(COMMON))
        assert said[1:] in line(actions, attacks=name)


def test_numbers_that_are_typed_in_change_the_time_at_once(tab):
    host, actions = tab
    run_of(host, "mine", concepts=(WEAPONS,))
    whole = line(actions, probe_run="mine", original=THE_RUN)
    assert "About 1 hour on a GPU" in whole and "Without a GPU" in whole
    few = {"attack_steps": 30, "probe_images": 2, "sampling_steps": 10}
    assert "About 20 minutes" in line(actions, probe_run="mine", original=THE_RUN, **few)
    assert line(actions, **few) != line(actions)
    wrong = line(actions, sampling_steps=-3)
    assert wrong == line(actions), "a wrong number is refused at the start"
    assert line(actions, original=THE_RUN) == "" and line(actions, attacks="gentle") == ""
    assert "CPU" in line(actions, original=DEMO)


def test_a_measured_pace_gives_the_time_of_a_run_and_of_its_checkpoint(tab):
    host, actions = tab
    run = run_of(host, "mine", concepts=(WEAPONS,))
    state = {"status": "done", "pace": {"drawing": 0.02, "training": 0.02},
             "request": {"run_folder": str(run)}}  # fmt: skip
    pace.remember(hosts.work_folder(host), state, date(2026, 11, 28))
    for values in ({"probe_run": "mine", "original": THE_RUN}, {}):
        said = line(actions, **values)
        assert "About 15 minutes" in said and "a job here" in said and "GPU" not in said


def test_a_probe_that_was_measured_gives_the_time_of_the_next(tab):
    """A probe also scores and loads: by the pace of a hardening 3 minutes stood for 5."""
    host, actions = tab
    run = run_of(host, "mine", concepts=(WEAPONS,))
    folder, checkpoint = hosts.work_folder(host), host.checkpoint_folder() / "model.safetensors"
    values = {"probe_run": "mine", "original": THE_RUN}
    asked = measure_forms.asked_plan(
        {"attacks": "quick", "probe_run": "mine"}, host, actions._runs()[0]
    )
    record = {"checkpoints": [{"path": str(checkpoint)}, {"path": str(run)}],
              "plan": to_json(asked), "device": "cpu"}  # fmt: skip
    probe = folder / "probes" / "one"
    probe.mkdir(parents=True)
    (probe / "job.json").write_text(json.dumps(record))
    state = {"job": "probe", "status": "done", "seconds": 5400.0,
             "request": {"folder": str(probe)}}  # fmt: skip
    for other in (
        {"status": "stopped"}, {"job": "resume"}, {"seconds": None}, {"request": None},
        {"request": {"folder": "/nowhere"}},
    ):  # fmt: skip
        probe_times.remember(folder, {**state, **other})
    assert "a job here" not in line(actions, **values)
    probe_times.remember(folder, state)
    assert "About 1.5 hours" in line(actions, **values) and "a job here" in line(actions, **values)
    assert "not measured" in actions.preset_line("durable", "model.safetensors")
    hardened = {"status": "done", "pace": {"drawing": 0.02, "training": 0.02},
                "request": {"run_folder": str(run)}}  # fmt: skip
    pace.remember(folder, hardened)
    assert "About 1.5 hours" in line(actions, **values), "a hardening does not replace it"


def test_a_test_run_is_probed_by_a_test_run_unless_more_was_asked_for(tab):
    host, actions = tab
    run_of(host, "short", "quick")
    run_of(host, "long")
    assert actions.attacks_for("short", "quick") == "fast"
    assert actions.attacks_for("short", "standard") == "standard"
    assert actions.attacks_for("long", "fast") == "quick"
    assert actions.attacks_for("none", "fast") == "fast"
    assert actions.attacks_for("gone", "quick") == "quick"


def test_a_test_probe_takes_minutes_on_a_gpu(tab):
    """The shortest took an hour, so that nobody could try all pages in one sitting."""
    host, actions = tab
    run_of(host, "short", "quick", (WEAPONS,))
    for run in ("short", "none"):
        assert "About 4 minutes on a GPU" in line(actions, attacks="fast", probe_run=run)


def test_too_few_steps_are_warned_of_at_the_start_and_the_field_says_what_is_usual(tab):
    """Two steps made every attack worthless, which the page said after the probe."""
    host, actions = tab
    write_checkpoint(host.checkpoint_folder() / "model.safetensors")
    run_of(host, "mine")
    for steps, few in ((0, False), (2, True), (19, True), (20, False)):
        said = actions.probe({"probe_run": "mine", "attack_steps": steps})
        assert "Probe started." in said
        assert (f"Attacks of {steps} steps bring next to nothing back" in said) is few
        assert ("ra-doubtful" in said) is few
        actions.jobs.close()
    refused = actions.probe({"probe_run": "gone", "attack_steps": 2})
    assert "not in the list" in refused and "Attacks of" not in refused
    info = measure_forms.steps_info()
    assert info.startswith("Test run: 40; A quick look: 100; Standard: 100 to 400; ")
    assert "Below about 30" in info


def test_checks_warn_of_attacks_that_are_too_short():
    from resalign.backend.plan.probe_settings import too_few_steps

    assert "Attacks of 1 step bring" in too_few_steps(probe_plan("quick", [CAT], steps=1))
    assert too_few_steps(probe_plan("quick", [CAT], steps=20)) == ""
    assert too_few_steps(ProbePlan(concepts=(CAT,))) == "", "no training was asked for"
