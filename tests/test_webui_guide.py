"""The tab's offers before and after a job: times, runs to choose, and the step that follows."""

import json
import os
from datetime import date

import pytest
from fakes_webui import host_with_a_checkpoint, write_header, write_run

from resalign.backend.jobs.job_time import DRAW, PREVIEW, JobTime, sets_of
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durations import COMMON, NAMES, Pace
from resalign.backend.plan.file import to_json
from resalign.backend.plan.presets import preset_plan
from resalign.scripts.resalign_webui import forms, guide, pace, thoroughness
from resalign.scripts.resalign_webui import host as hosts
from resalign.scripts.resalign_webui.actions import NONE
from resalign.scripts.resalign_webui.runs import preferred, read_runs

CAT = Concept("cat", ("a cat",))
TEST, BALANCED = (to_json(preset_plan(name, [CAT])) for name in ("quick", "balanced"))


@pytest.fixture
def tab(tmp_path):
    return host_with_a_checkpoint(tmp_path)


@pytest.fixture
def host(tab):
    return tab[0]


@pytest.fixture
def actions(tab):
    return tab[1]


def run_of(host, name, plan=BALANCED, steps=None, at=0):
    """A run folder whose plan was written at a time; newer ones come first in the lists."""
    folder = hosts.runs_folder(host) / name
    write_run(folder, plan, str(host.checkpoint_folder() / "model.safetensors"), 0)
    steps = plan["outer_steps"] if steps is None else steps
    for file in ("state.safetensors", "adapter.safetensors"):
        header = {"resalign": json.dumps({"step": steps, "values": {}})}
        write_header(folder / file, header)
    os.utime(folder / "plan.json", (1e9 + at, 1e9 + at))
    return folder


def probe_of(host, name, *measured, at=0):
    folder = hosts.probes_folder(host) / name
    folder.mkdir(parents=True)
    job = folder / "job.json"
    job.write_text(json.dumps({"checkpoints": [{"path": str(path)} for path in measured]}))
    os.utime(job, (1e9 + at, 1e9 + at))
    (folder / "report.html").write_text("")
    return folder


# --- runs ---------------------------------------------------------------------------------------


def test_a_runs_label_says_that_it_is_a_test_or_not_finished(host):
    run_of(host, "short", TEST)
    run_of(host, "whole")
    run_of(host, "begun", steps=40)
    labels = {run.name: run.label for run in read_runs(hosts.runs_folder(host))}
    assert labels == {
        "short": "short | test run, not safe to publish", "whole": "whole | finished",
        "begun": "begun | not finished: step 40 of 160",
    }  # fmt: skip


def test_the_newest_finished_run_that_is_no_test_is_offered_first(host, actions):
    assert actions.defaults()["export_run"] is None and actions.defaults()["probe_run"] == NONE
    run_of(host, "begun", steps=40, at=9)
    assert actions.defaults()["export_run"] is None, "one that is not finished is never offered"
    assert actions.defaults()["probe_run"] == NONE
    run_of(host, "short", TEST, at=8)
    assert actions.defaults()["export_run"] == "short"
    run_of(host, "old", at=1)
    run_of(host, "whole", at=2)
    runs = read_runs(hosts.runs_folder(host))
    assert [run.name for run in runs] == ["begun", "short", "whole", "old"]
    chosen = preferred(runs)
    assert chosen is not None and chosen.name == "whole"
    found = actions.defaults()
    assert {found[n] for n in ("probe_run", "export_run", "try_run")} == {"whole"}


def test_the_page_warns_of_a_test_run_and_of_one_that_is_not_finished(host, actions):
    for name, plan, steps in (("a", TEST, None), ("b", BALANCED, 40), ("c", BALANCED, None)):
        run_of(host, name, plan, steps)
    assert "a is a test run" in actions.about_run("a") and "Resume" in actions.about_run("b")
    assert actions.about_run("c") == actions.about_run(NONE) == actions.about_run(None) == ""


def test_the_value_of_a_list_stays_while_its_label_tells_the_state(host, actions):
    """A choice must not be lost, or refused by gradio, because the run went on."""
    folder = run_of(host, "one", steps=40)
    before = actions.choices()["probe_run"]
    write_run(folder, BALANCED, "", BALANCED["outer_steps"])
    after = actions.choices()["probe_run"]
    assert [entry[1] for entry in before[1:]] == [entry[1] for entry in after[1:]] == ["one"]
    assert before[1][0] != after[1][0]


def test_resume_continues_the_run_that_was_just_stopped(host, actions):
    old = run_of(host, "old", steps=40, at=1)
    run_of(host, "new", steps=40, at=2)
    assert actions.unfinished() == "new"
    actions.jobs._state = {"status": "stopped", "request": {"run_folder": str(old)}}
    assert actions.unfinished() == "old"


def test_an_export_proposes_the_newest_report_of_its_run(host, actions):
    one, other = run_of(host, "one"), run_of(host, "other")
    assert actions.report_for("one") == NONE
    probe_of(host, "older", "model", one, at=1)
    probe_of(host, "newer", "model", one, at=2)
    unfinished = probe_of(host, "unfinished", "model", one, at=3)
    (unfinished / "report.html").unlink()
    probe_of(host, "of the file", "model", "hard.safetensors", at=4)
    assert actions.report_for("one | finished") == "newer"
    assert actions.report_for("other") == actions.report_for("gone") == NONE
    broken = probe_of(host, "broken", other, at=5)
    (broken / "job.json").write_text('{"checkpoints": [7]}')
    assert actions.report_for("other") == NONE


# --- the path -----------------------------------------------------------------------------------


def after(actions, job, **request):
    actions.jobs._state = {"status": "done", "job": job, "kind": job, "request": request}
    return actions.next_step()


def test_each_step_leads_to_the_next_until_the_release_is_packed(host, actions):
    run, probe = run_of(host, "whole"), probe_of(host, "measured")
    step = after(actions, "harden", run_folder=str(run))
    assert (step.page, step.chosen) == ("Probe", {"probe_run": "whole"})
    assert after(actions, "resume", run_folder=str(run)) == step

    checkpoints = [{"path": "model"}, {"path": str(run)}]
    step = after(actions, "probe", folder=str(probe), checkpoints=checkpoints)
    assert (step.page, step.chosen) == (
        "Export", {"export_probe": "measured", "export_run": "whole"}
    )  # fmt: skip
    new = host.checkpoint_folder() / "hard.safetensors"
    write_header(new, {})
    step = after(actions, "export", run_folder=str(run), probe=str(probe), output=str(new))
    assert (step.page, step.chosen) == (
        "Reports", {"report": "measured", "pack_checkpoint": "hard.safetensors"}
    )  # fmt: skip
    assert step.label == "Next: pack it for a release"
    actions.jobs._state["verdict"] = "doubtful"
    assert actions.next_step().label == "Next: pack what was measured"
    assert after(actions, "pack", report=str(probe)) is None, "the last one"


def test_a_file_that_was_measured_is_packed_and_what_was_not_measured_is_measured(host, actions):
    run, probe = run_of(host, "whole"), probe_of(host, "measured")
    write_header(host.checkpoint_folder() / "hard.safetensors", {})
    checkpoints = [{"path": "m"}, {"path": str(host.checkpoint_folder() / "hard.safetensors")}]
    step = after(actions, "probe", folder=str(probe), checkpoints=checkpoints)
    assert step.page == "Reports" and step.chosen["pack_checkpoint"] == "hard.safetensors"
    step = after(actions, "export", run_folder=str(run), output="elsewhere")
    assert step.page == "Probe"


@pytest.mark.parametrize("status", ["running", "stopped", "failed"])
def test_a_job_that_is_not_done_leads_nowhere(host, actions, status):
    run = run_of(host, "whole")
    state = {"status": status, "job": "harden", "request": {"run_folder": str(run)}}
    assert guide.next_step(state, read_runs(hosts.runs_folder(host)), [], str) is None
    assert guide.next_step(None, [], [], str) is None


def test_the_pages_of_the_path_are_numbered():
    assert [guide.title(page) for page in (*guide.WAY, "Try my LoRA")] == [
        "1 Harden", "2 Probe", "3 Export", "4 Reports", "Try my LoRA",
    ]  # fmt: skip


# --- times --------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [hosts.DEMO, "mine.safetensors"])
def test_the_choices_stand_in_the_order_of_their_times_the_test_run_first(checkpoint):
    choices = thoroughness.preset_choices(checkpoint)
    assert {value for _, value in choices} == set(thoroughness.PRESETS)
    seconds = [thoroughness._seconds(value, checkpoint, None) for _, value in choices]
    assert choices[0][1] == "fast" and seconds[1:] == sorted(seconds[1:])
    assert all(label.startswith(f"{NAMES[value]}: ") for label, value in choices)
    if checkpoint != hosts.DEMO:
        assert choices[0] == ("Test run: 2 min; only shows that everything works", "fast")
        assert choices[-1][0].startswith("Longest lasting: 3.5 h; lasts longer, under strong")


@pytest.mark.parametrize("pace", [None, Pace(0.04, 0.064), Pace(1.0, 0.01), Pace(0.01, 1.0)])
def test_no_choice_moves_when_another_checkpoint_is_chosen(pace):
    """A click on one choice would fall on another, as it did in reForge."""
    orders = [
        [value for _, value in thoroughness.preset_choices(checkpoint, known)]
        for checkpoint in (hosts.DEMO, "mine.safetensors") for known in (None, pace)
    ]  # fmt: skip
    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize("name", ["fast", "edit", "thorough", "durable", "durable-max"])
def test_the_demos_times_follow_from_its_own_passes(name):
    plan = forms.demo_plan({"preset": name})
    work = JobTime(plan, sets_of(plan), every=10).work
    drawing = sum(work[kind].units * work[kind].passes for kind in (DRAW, PREVIEW))
    total = sum(one.units * one.passes for one in work.values())
    stated = thoroughness.DEMO_PASSES[name]
    assert (stated.drawing, stated.training) == pytest.approx((drawing, total - drawing), abs=1)


def test_three_choices_are_shown_first_and_each_says_what_it_is_for(actions):
    """There are eight in all, and a choice used to be explained only once it was made."""
    few = actions.preset_choices("mine.safetensors", every=False)
    assert [value for _, value in few] == ["fast", "balanced", "durable"]
    assert len(actions.preset_choices("mine.safetensors")) == 8
    said = {value: label.partition("; ")[2] for label, value in thoroughness.preset_choices("a")}
    assert all(said.values()) and len(set(said.values())) == 8
    kept = actions.preset_choices("mine.safetensors", every=False, chosen="paper")
    assert "paper" in [value for _, value in kept], "a choice in sight stays"


def test_a_test_run_that_takes_longer_than_an_edit_says_why():
    assert "longer than Quick edit, which simulates no users" in thoroughness.preset_line(
        "fast", hosts.DEMO
    )
    assert "longer than Quick edit" not in thoroughness.preset_line("fast", "mine.safetensors")
    assert "longer than Quick edit" not in thoroughness.preset_line("durable", hosts.DEMO)


def label_of(actions, preset):
    choices = actions.preset_choices("model.safetensors")
    return next(label for label, value in choices if value == preset)


def test_a_time_says_what_it_assumes_until_a_job_has_measured_it(host, actions):
    line = actions.preset_line("durable", "model.safetensors")
    assert "about 2 hours" in line and "5 it/s" in line and "not measured" in line
    assert "Lasting: 2 h; recommended: " in label_of(actions, "durable")

    run = run_of(host, "whole")
    state = {"pace": {"drawing": 0.02, "training": 0.2}, "request": {"run_folder": str(run)}}
    pace.remember(hosts.work_folder(host), state, date(2026, 11, 28))
    line = actions.preset_line("durable", "model.safetensors")
    assert "about 1.5 hours" in line and "from a job here" in line and "2026-11-28" in line
    assert "Lasting: 1.5 h; " in label_of(actions, "durable")
    assert "not measured here" in actions.preset_line("durable", "model.safetensors", 1024)
    assert "not measured here" in actions.preset_line("durable", "another.safetensors")
    assert "5 it/s" not in actions.preset_line("durable", hosts.DEMO)


def ended(measured, run, status="done"):
    """The last state of a job that measured its pace."""
    return {"status": status, "pace": measured, "request": {"run_folder": run}}


def test_what_a_cancelled_job_measured_is_no_promise(host):
    """Its few pictures, drawn while everything was loading, made 10 minutes 1, and later 15."""
    folder, run = hosts.work_folder(host), str(run_of(host, "whole"))
    path = str(host.checkpoint_folder() / "model.safetensors")
    pace.remember(folder, ended({"drawing": 0.001}, run, "stopped"))
    assert pace.known(folder, path) is None, "it drew, and did not train"
    pace.remember(folder, ended({"drawing": 0.1, "training": 0.2}, run, "failed"))
    assert pace.known(folder, path)[0] == Pace(0.1, 0.2), "better than what others measured"
    pace.remember(folder, ended({"drawing": 0.3, "training": 0.4}, run))
    pace.remember(folder, ended({"drawing": 9.0, "training": 9.0}, run, "stopped"))
    assert pace.known(folder, path)[0] == Pace(0.3, 0.4), "a finished job has measured all of it"


def test_the_newest_measurement_of_a_checkpoint_counts_and_bad_ones_do_not(host):
    folder, run = hosts.work_folder(host), str(run_of(host, "whole"))
    path = str(host.checkpoint_folder() / "model.safetensors")
    measurements = ({"drawing": 1.0}, {"drawing": 0.5}, {}, {"training": float("nan")}, None)
    for measured in measurements:
        pace.remember(folder, ended(measured, run))
    found = pace.known(folder, path)
    assert found is not None and found[0] == Pace(0.5, 0.5), "what is missing is the other's"
    pace.remember(folder, ended({"training": 3.0}, run))
    found = pace.known(folder, path)
    assert found is not None and found[0] == Pace(0.5, 3.0), "a resumed job draws nothing"
    pace.remember(folder, ended({"drawing": 9.0}, "/nowhere"))
    pace.remember(folder, {**ended({"drawing": 9.0}, run), "request": None})
    assert pace.known(folder, path) == found
    for text in ("", "{}", "[1, null]", '[{"checkpoint": 3}]'):
        (folder / pace.PACE).write_text(text)
        assert pace.known(folder, path) is None


def test_the_pace_of_the_demo_is_found_by_its_name(host):
    from resalign.backend.demo.plans import CHECKPOINT

    run = hosts.runs_folder(host) / "demo"
    write_run(run, BALANCED | {"resolution": 64}, str(CHECKPOINT), 0)
    pace.remember(hosts.work_folder(host), ended({"training": 2.0}, str(run)))
    assert pace.known(hosts.work_folder(host), "demo") is None, "of another resolution"
    found = pace.known(hosts.work_folder(host), "demo", None)
    assert found is not None and found[0] == Pace(2.0, 2.0) != COMMON
