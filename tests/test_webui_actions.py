"""The tab's buttons, without a page: with a fake host and jobs that are played."""

import shutil
import threading
import time
import types

import pytest
from fakes_webui import CHECKED, FakeHost, FakeJobs, write_header

from resalign.backend.demo.plans import CHECKPOINT
from resalign.scripts.resalign_webui import host as hosts
from resalign.scripts.resalign_webui import leaving, views
from resalign.scripts.resalign_webui.actions import NONE, Actions
from resalign.scripts.resalign_webui.measure_forms import THE_RUN
from resalign.scripts.resalign_webui.routes import report_url

FORM = {"checkpoint": hosts.DEMO, "concepts": ["weapons"], "preset": "fast"}


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)


@pytest.fixture
def jobs(host):
    made = FakeJobs(steps=4, pause=0.05)
    yield made
    made.close()


@pytest.fixture
def actions(host, jobs):
    return Actions(host, jobs, report_url)


def wait_for(jobs, status, seconds=10):
    """Until a job has ended so."""
    until = time.monotonic() + seconds
    while (jobs.state() or {}).get("status") != status:
        assert time.monotonic() < until, jobs.state()
        time.sleep(0.02)


def test_a_start_is_told_and_everybody_who_looks_sees_the_job_to_its_end(actions, jobs):
    assert "Hardening started" in actions.harden(FORM)
    one, other = actions.follow(), actions.follow()
    assert 'data-status="running"' in next(one)[0] and 'data-status="running"' in next(other)[0]
    for follower in (one, other):
        *_, (last, over) = follower
        assert over and 'data-status="done"' in last
    assert next(actions.follow())[1], "who comes later sees how it ended, and is free"


def test_a_start_says_what_the_demo_is_hardened_against_if_nothing_was_ticked(actions, jobs):
    said = actions.harden({"checkpoint": hosts.DEMO, "preset": "fast"})
    assert "nothing is ticked, so the demo&#x27;s own concept, weapon." in said
    (request,) = jobs.requests
    assert [one["name"] for one in request["plan"]["concepts"]] == ["weapon"]
    jobs.close()
    assert "own concept" not in actions.harden(FORM)


def test_who_looks_lets_go_when_the_server_wants_to_end(actions, jobs):
    """A1111's Reload UI waits for every page that is being told of a job."""
    actions.harden({**FORM, "outer_steps": 40})
    follower = actions.follow()
    next(follower)
    assert actions.followers == 1
    actions.closing = True
    assert list(follower) == [] and actions.followers == 0


@pytest.mark.parametrize("followers", [0, 1])
def test_a_server_that_waits_for_a_follower_is_made_to_stop(actions, monkeypatch, followers):
    monkeypatch.setattr(leaving, "_PATIENCE", 0.1)
    forced = threading.Event()
    server = types.SimpleNamespace(should_exit=False, force_exit=False)
    server.thread = threading.Thread(target=forced.wait, args=(5,))
    server.thread.start()
    actions.followers, actions.followed = followers, bool(followers)
    watching = leaving.watch(server, actions)
    server.should_exit = True
    watching.join(5)
    assert actions.closing and server.force_exit == bool(followers)
    forced.set()
    server.thread.join()


def test_a_server_that_waits_although_its_follower_has_ended_is_made_to_stop(actions, monkeypatch):
    monkeypatch.setattr(leaving, "_PATIENCE", 0.2)
    forced = threading.Event()

    def serve():
        while not actions.closing:
            forced.wait(0.01)
        actions.followers = 0  # it ended, and its connection is still waited for
        forced.wait(5)

    actions.followers, actions.followed = 1, True
    server = types.SimpleNamespace(should_exit=True, force_exit=False)
    server.thread = threading.Thread(target=serve)
    server.thread.start()
    leaving.watch(server, actions).join(5)
    assert server.force_exit
    forced.set()
    server.thread.join()


def test_a_second_job_and_a_mistake_are_told_on_the_page_and_start_nothing(actions, jobs):
    assert "tick weapons alone" in actions.harden({**FORM, "concepts": ["nudity"]})
    assert "ra-error" in actions.harden({**FORM, "seed": "x"})
    assert jobs.requests == []
    actions.harden(FORM | {"run_name": "mine"})
    said = actions.harden(FORM | {"run_name": "mine"})  # as by two clicks within a second
    assert "ra-error" in said and "is running" in said
    assert len(jobs.requests) == 1


def test_what_a_check_finds_is_put_into_the_form_on_request(actions, jobs, host):
    """Only its own result, each value looked at as if a page had sent it."""
    assert "Press Check memory first" in actions.fitting()[0]
    (host.checkpoint_folder() / "model.safetensors").symlink_to(CHECKPOINT)
    form = {**FORM, "checkpoint": "model.safetensors", "memory_budget": 8}
    assert "from 0 to 10000" in actions.check({**form, "memory_budget": -1})
    assert "Checking" in actions.check(form)
    assert jobs.requests[0]["job"] == "check" and jobs.requests[0]["budget"] == 8
    wait_for(jobs, "done")
    said, fields = actions.fitting()
    assert fields == {"micro_batch": 2, "gradient_checkpointing": True, "precision": "bf16",
                      "products": "finite_difference"}  # fmt: skip
    assert "ra-good" in said and "precision: bf16" in said

    found = CHECKED["prediction"]
    for prediction, words in (
        ({**found, "changes": {}}, "fits as it is"), ({**found, "fits": False}, "Nothing fits"),
        ({**found, "changes": {"precision": "int2"}}, "choose from preset"),
        ({**found, "changes": {"quantization": "nf4"}}, "quantization = nf4"),
    ):  # fmt: skip
        jobs.tell(result={"prediction": prediction})
        said, fields = actions.fitting()
        assert words in said and fields == {}
    jobs.tell(result=CHECKED, request={"checkpoint": "demo"})
    assert "fixed settings" in actions.fitting()[0]


def test_a_bug_is_not_taken_for_a_mistake(actions, jobs):
    def broken(request):
        raise RuntimeError("a bug")

    jobs.start = broken
    with pytest.raises(RuntimeError, match="a bug"):
        actions.harden(FORM)


def test_a_cancelled_run_is_offered_again_and_goes_on_where_it_stopped(actions, jobs):
    actions.harden({**FORM, "outer_steps": 40})
    jobs.wait(1, 5)
    actions.cancel()
    wait_for(jobs, "stopped")
    ((label, name),) = actions.choices()["unfinished"]
    assert "of 40" in label and name == actions.unfinished()
    assert "Continuing" in actions.resume({"unfinished": name})
    wait_for(jobs, "done")
    assert jobs.requests[1]["run_folder"] == jobs.requests[0]["run_folder"]
    assert actions.choices()["unfinished"] == []
    assert "refresh the list" in actions.resume({"unfinished": name})
    assert "none is chosen" in actions.resume({"unfinished": None})


def test_an_export_renews_the_host_s_list_though_no_page_looks(actions, jobs, host):
    actions.harden(FORM)
    wait_for(jobs, "done")
    run = actions.choices()["export_run"][0][1]
    assert "Export started" in actions.export({"export_run": run, "export_name": "new"})
    wait_for(jobs, "done")
    until = time.monotonic() + 5
    while not host.calls and time.monotonic() < until:
        time.sleep(0.02)
    (call,) = host.calls
    assert call[0] == "exported" and call[2] == host.checkpoint_folder() / "new.safetensors"


def test_a_page_is_given_the_lists_once_the_host_has_read_its_folders(actions, jobs, host):
    """A1111 empties its list while it looks: a page that asked meanwhile had no checkpoint left."""
    write_header(host.checkpoint_folder() / "model.safetensors", {})
    actions.harden(FORM)
    wait_for(jobs, "done")
    listed, reading = host.checkpoints, threading.Event()

    def exported(source, output):
        host.checkpoints = list
        reading.set()
        time.sleep(0.3)
        host.checkpoints = listed

    host.exported = exported
    run = actions.choices()["export_run"][0][1]
    actions.export({"export_run": run, "export_name": "new"})
    wait_for(jobs, "done")
    reading.wait(5)
    *_, (_, over) = actions.follow()
    assert over and "model.safetensors" in actions.choices()["checkpoint"]


def test_lists_offer_what_is_there(actions, host, jobs):
    write_header(host.checkpoint_folder() / "model.safetensors", {})
    write_header(host.lora_folder() / "style.safetensors", {})
    actions.harden(FORM)
    wait_for(jobs, "done")
    jobs.start({"job": "probe", "folder": str(hosts.probes_folder(host) / "measured")})
    wait_for(jobs, "done")
    (hosts.probes_folder(host) / "begun").mkdir()
    (hosts.probes_folder(host) / "begun" / "plan.json").write_text("{}")

    found = actions.refresh()

    assert found["checkpoint"] == [hosts.DEMO, "model.safetensors"]
    assert found["hardened"] == [THE_RUN, "model.safetensors"]
    assert found["lora"] == ["style.safetensors"]
    assert len(found["export_run"]) == 1 and found["try_run"][0] == NONE
    measured = ("measured", "measured")
    assert found["report"] == [measured] and found["export_probe"] == [NONE, measured]
    assert found["unfinished"] == [("begun | probe, not finished", "begun")]
    assert "refreshed" in host.calls


def test_a_checkpoint_is_described_by_its_header_without_a_path(actions, host, tmp_path):
    shutil.copyfile(CHECKPOINT, host.checkpoint_folder() / "tiny.safetensors")
    (host.checkpoint_folder() / "pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(60))
    assert "Stable Diffusion 1.x" in actions.describe(hosts.DEMO)
    text = actions.provenance("tiny.safetensors")
    assert "Stable Diffusion" in text and "no record of it" in text and "tiny.safetensors" in text
    for said in (
        text, actions.provenance("pickle.safetensors"), actions.provenance("no"),
        actions.describe("pickle.safetensors"), actions.provenance(hosts.DEMO),
    ):  # fmt: skip
        assert str(tmp_path) not in said and "/backend/" not in said
    assert "pickle" in actions.describe("pickle.safetensors")
    assert actions.describe(None) == ""


def test_a_report_is_shown_in_a_sandbox_by_the_name_of_its_probe(actions, host):
    folder = hosts.probes_folder(host) / "my probe & co"
    folder.mkdir(parents=True)
    (folder / "probe.json").write_text("{}")
    (folder / "report.html").write_text("")
    text = actions.report("my probe & co")
    assert 'src="resalign/report/my%20probe%20%26%20co/report.html"' in text
    assert 'sandbox="allow-scripts allow-popups"' in text
    assert actions.report(None) == text, "pressed before the page has chosen: the newest"
    for wrong in ("../outputs", "no such", 5):
        assert "ra-error" in actions.report(wrong)


def test_a_missing_worker_is_reported_and_built(actions, host):
    assert actions.missing() == ""
    host.problem = "there is no environment"
    assert "there is no environment" in actions.missing()
    said = list(actions.build_worker())
    assert "making it" in said[0] and "Ready" in said[-1]
    host.problem, lines = "there is no environment", ["one", "", "two"]
    host.build_worker = lambda: iter(lines)
    assert list(actions.build_worker())[:2] == [views.building(["one"])] * 2, "a sign of life"


def test_an_environment_in_the_making_shows_a_bar_by_its_stages():
    assert 'aria-valuenow="0"' in views.building(["Making the worker's environment."])
    lines = ["[1/4] Making it.", "[2/4] Fetching.", *(f"Collecting {n}" for n in range(20))]
    shown = views.building(lines)
    assert 'aria-valuenow="38"' in shown and 'role="progressbar"' in shown
    assert "Collecting 19" in shown and "Collecting 5" not in shown
