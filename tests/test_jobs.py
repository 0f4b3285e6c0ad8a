"""Jobs as a host sees them, with a worker that speaks the protocol and does no work."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from fakes_worker import FakeHost, ended, gone, resume_request, use_fake, wait_for

from resalign.backend.errors import ConfigError, ResAlignError
from resalign.backend.worker import process as processes
from resalign.scripts.resalign_webui import pace
from resalign.scripts.resalign_webui.jobs import BusyError, JobManager

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the fake kills itself by signals")


@pytest.fixture
def host():
    return FakeHost()


@pytest.fixture
def jobs(monkeypatch, tmp_path, host):
    use_fake(monkeypatch, tmp_path)
    manager = JobManager(host, tmp_path / "jobs")
    yield manager
    manager.close()


@pytest.fixture
def begin(jobs, tmp_path):
    """Start a job that behaves as told."""
    return lambda how: jobs.start(resume_request(tmp_path / "run", how))


def step_two(state):
    return state["step"] == 2


def test_a_job_runs_to_its_result_under_the_hosts_queue(jobs, begin, host, tmp_path):
    assert jobs.state() is None
    begin("done")
    state = wait_for(jobs, ended)
    assert state["status"] == "done" and state["error"] is None
    assert state["result"] == {"run_folder": str(tmp_path / "run")}
    assert (state["job"], state["step"], state["curves"]) == ("resume", 9, {"harm": [[9, 0.5]]})
    assert (host.entered, host.left) == (1, 1)


def test_the_pace_of_a_hardening_is_kept_also_when_it_was_stopped_while_it_trained(
    jobs, begin, tmp_path
):
    """For the times that the form states of this checkpoint on this machine."""
    run, model = tmp_path / "run", tmp_path / "model.safetensors"
    begin("waits")
    wait_for(jobs, step_two)
    (run / "job.json").write_text(json.dumps({"checkpoint": str(model), "device": "cpu"}))
    (run / "plan.json").write_text(json.dumps({"resolution": 0}))
    jobs._update({**jobs.state(), "pace": {"drawing": 0.5, "training": 0.9}})
    jobs.cancel()
    assert wait_for(jobs, ended)["status"] == "stopped"
    found = pace.known(tmp_path / "jobs", str(model))
    assert found is not None and found[0].drawing == 0.5 and found[1].endswith(", cpu")


def test_the_seconds_of_a_running_job_are_those_since_its_start(jobs, begin, monkeypatch):
    """Its worker reports when it has news, which may be minutes apart, and begins later."""
    begin("waits")
    wait_for(jobs, step_two)
    shift, real = [100.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + shift[0])
    assert 100 <= jobs.state()["seconds"] < 130
    shift[0] = 200.0
    assert 200 <= jobs.state()["seconds"] < 230, "without a report"
    jobs.cancel()
    took = wait_for(jobs, ended)["seconds"]
    assert 200 <= took < 230
    shift[0] = 300.0
    assert jobs.state()["seconds"] == took, "it has ended"


def test_a_check_leaves_the_host_its_queue_and_its_model(jobs, host, tmp_path):
    """It computes without the GPU; the host may draw meanwhile."""
    plan = {"concepts": [{"name": "cat", "prompts": ["a cat"]}]}
    folder = str(tmp_path / "run")
    request = {"job": "check", "checkpoint": "demo", "plan": plan, "run_folder": folder}
    with host.queue:
        jobs.start({**request, "device": "cpu"})
        assert wait_for(jobs, ended)["result"] == {"run_folder": folder}
    assert host.entered == 0


def test_pictures_stay_until_others_come(jobs, begin):
    begin("waits")
    state = wait_for(jobs, step_two)
    assert [picture["url"] for picture in state["pictures"]] == ["data:x"]


def test_what_is_no_event_is_kept_as_log(jobs, begin):
    begin("noise")
    log = wait_for(jobs, ended)["log"]
    assert {"a library speaks", '@resalign {"broken', "a warning of its own"} <= set(log)


def test_cancel_stops_a_job_and_may_be_said_twice(jobs, begin):
    begin("waits")
    wait_for(jobs, step_two)
    before = time.monotonic()
    jobs.cancel()
    jobs.cancel()
    assert time.monotonic() - before < 0.5
    state = wait_for(jobs, ended)
    assert state["status"] == "stopped"
    assert state["message"] == "stopped after step 2 of 9 by 'cancel\\n'"
    jobs.cancel()  # nothing runs: nothing happens
    assert jobs.state()["status"] == "stopped"


@pytest.mark.parametrize(("kind", "says"), [("probe", True), ("export", False)])
def test_stopping_promises_what_is_kept_only_where_something_is(jobs, kind, says):
    """An export that is stopped leaves no file."""
    jobs._state = {"kind": kind, "revision": 0, "line": "", "result": None, "status": "running"}
    jobs._cancelled = True
    jobs._update({"status": "stopped"})
    assert jobs._state["line"] == "stopping" + "; what is done is kept" * says
    jobs._state, jobs._cancelled = None, False


def test_a_cancel_right_after_the_start_is_not_lost(jobs, begin):
    begin("waits")
    jobs.cancel()
    assert wait_for(jobs, ended)["status"] == "stopped"


def test_a_job_that_waits_for_the_queue_can_be_cancelled(jobs, begin, host):
    with host.queue:
        begin("done")
        jobs.cancel()
        assert jobs.state()["message"] == "stopping"
    state = wait_for(jobs, ended)
    assert (state["status"], state["message"]) == ("stopped", "stopped before it began")


def test_reload_ui_does_not_wait_for_the_queue(jobs, begin, host, tmp_path):
    """The job that waits stops when its turn comes, and leaves the next manager's file alone."""
    with host.queue:
        begin("done")
        waiting = jobs._thread
        before = time.monotonic()
        jobs.close()
        assert time.monotonic() - before < 5
        again = JobManager(host, tmp_path / "jobs")
        assert again.state()["status"] == "stopped"
        kept = (tmp_path / "jobs" / "last_job.json").read_bytes()
    waiting.join(10)
    assert not waiting.is_alive() and jobs.state()["message"] == "stopped before it began"
    assert (tmp_path / "jobs" / "last_job.json").read_bytes() == kept
    again.close()


@pytest.mark.parametrize("how", ["deaf", "deaf undying"])
def test_a_worker_that_does_not_listen_is_ended(jobs, begin, monkeypatch, how):
    monkeypatch.setattr(processes.WorkerProcess.cancel, "__kwdefaults__",
                        {"grace": 0.2, "last_grace": 0.2})  # fmt: skip
    begin(how)
    wait_for(jobs, step_two)
    jobs.cancel()
    state = wait_for(jobs, ended, 10)
    assert state["status"] == "stopped" and "Resume" in state["message"]


def test_what_a_worker_has_started_does_not_outlive_it(jobs, begin, monkeypatch):
    """As far as it is us who kill it."""
    monkeypatch.setattr(processes.WorkerProcess.cancel, "__kwdefaults__",
                        {"grace": 0.1, "last_grace": 0.1})  # fmt: skip
    begin("child deaf undying")
    log = wait_for(jobs, lambda state: any(line.startswith("child") for line in state["log"]))[
        "log"
    ]
    (child,) = (int(line.split()[1]) for line in log if line.startswith("child"))
    os.kill(child, 0)
    jobs.cancel()
    wait_for(jobs, ended, 10)
    assert gone(child, 5)


def test_one_job_at_a_time(jobs, begin):
    begin("waits")
    with pytest.raises(BusyError, match=r"a job \(resume\) is running"):
        begin("done")
    jobs.cancel()
    wait_for(jobs, ended)
    begin("done")
    assert wait_for(jobs, ended)["status"] == "done"


def test_of_two_windows_that_start_at_once_one_wins(jobs, begin):
    gate, outcomes = threading.Barrier(8), []

    def press():
        gate.wait()
        try:
            begin("waits")
            outcomes.append("started")
        except BusyError:
            outcomes.append("busy")

    threads = [threading.Thread(target=press) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["busy"] * 7 + ["started"]


def test_a_users_mistake_found_by_the_worker_is_told_as_such(jobs, begin):
    begin("user")
    state = wait_for(jobs, ended)
    assert state["status"] == "failed" and state["message"] == "give another folder"
    assert state["error"] == {"kind": "user", "message": "give another folder"}


def test_a_killed_worker_is_reported_with_its_last_words(jobs, begin, host):
    begin("killed")
    state = wait_for(jobs, ended)
    assert state["error"]["kind"] == "lost"
    assert "killed (SIGKILL)" in state["message"]
    assert "the last thing it said" in state["message"]
    assert state["message"].endswith("Resume continues from what was saved")
    assert not host.queue.locked()
    begin("done")
    assert wait_for(jobs, ended)["status"] == "done"


def test_a_worker_that_ends_without_a_word_has_failed(jobs, begin):
    begin("silent")
    state = wait_for(jobs, ended)
    assert state["status"] == "failed" and "exit code 7" in state["message"]


def test_a_wrong_request_is_refused_before_anything_starts(jobs, host, tmp_path):
    request = resume_request(tmp_path / "run", "done")
    with pytest.raises(ConfigError, match=r"'devise' is not a field of the job resume; did you"):
        jobs.start({**request, "devise": "cpu"})
    with pytest.raises(ConfigError, match="not a run folder"):
        jobs.start({**request, "run_folder": str(tmp_path)})
    assert jobs.state() is None and host.entered == 0


def test_a_missing_worker_is_a_mistake_that_can_be_mended(jobs, begin, host):
    host.python = "/nowhere/python"
    with pytest.raises(ResAlignError, match=r"/nowhere/python does not exist: build the worker's"):
        begin("done")
    assert jobs.state() is None


def test_a_host_that_cannot_give_its_memory_fails_the_job_alone(jobs, begin, host):
    host.fails_at = "entering"
    begin("done")
    state = wait_for(jobs, ended)
    assert state["status"] == "failed" and "no memory to be freed" in state["error"]["message"]
    host.fails_at = ""
    begin("done")
    assert wait_for(jobs, ended)["status"] == "done"


def test_a_host_that_fails_afterwards_does_not_take_the_result_away(jobs, begin, host, tmp_path):
    host.fails_at = "leaving"
    begin("done")
    state = wait_for(jobs, ended)
    assert state["status"] == "done" and state["result"] == {"run_folder": str(tmp_path / "run")}
    assert "then the host failed: the model does not come back" in state["message"]
    assert not host.queue.locked()


def test_the_worker_has_neither_the_hosts_path_nor_its_terminal(jobs, begin, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/host")
    begin("python")
    assert "False True" in wait_for(jobs, ended)["log"]


def test_the_last_job_is_there_after_reload_ui(jobs, begin, host, tmp_path):
    begin("waits")
    revision = wait_for(jobs, step_two)["revision"]
    jobs.close()
    with pytest.raises(ResAlignError, match="shutting down"):
        begin("done")
    again = JobManager(host, tmp_path / "jobs")
    state = again.state()
    assert (state["status"], state["step"], state["job"]) == ("stopped", 2, "resume")
    assert state["revision"] > revision and state["pictures"] == []
    assert state["request"]["run_folder"] == str(tmp_path / "run")
    assert again.wait(revision, 0) == state
    again.close()


def test_a_job_that_its_host_did_not_survive_is_shown_as_stopped(jobs, begin, host, tmp_path):
    begin("waits")
    wait_for(jobs, step_two)
    kept = json.loads((tmp_path / "jobs" / "last_job.json").read_text())
    assert kept["status"] == "running"  # what a host that is killed now leaves behind
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "last_job.json").write_text(json.dumps(kept))
    again = JobManager(host, tmp_path / "later")
    assert again.state()["status"] == "stopped" and "Resume" in again.state()["message"]
    again.close()


def test_a_damaged_last_job_does_not_stop_the_host(host, tmp_path):
    (tmp_path / "last_job.json").write_text('{"log": [')
    manager = JobManager(host, tmp_path)
    assert manager.state() is None
    manager.close()


def test_a_state_is_a_copy_and_waiting_ends(jobs, begin):
    assert jobs.wait(0, 0.01) is None
    begin("waits")
    state = wait_for(jobs, step_two)
    state["curves"]["harm"].clear()
    assert jobs.state()["curves"]["harm"] == [[2, 0.5]]
    assert jobs.wait(jobs.state()["revision"], 0.01) is None
    json.dumps(jobs.state(), allow_nan=False)


def test_a_host_that_ends_takes_its_worker_along(tmp_path):
    """Nobody closes the manager; Python does when it exits."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import conftest
        from pathlib import Path
        from fakes_worker import FAKE, FakeHost, resume_request, wait_for
        from resalign.backend.worker import process
        from resalign.scripts.resalign_webui import jobs
        folder = Path({str(tmp_path)!r})
        process.WORKER = folder / "fake_worker.py"
        process.WORKER.write_text(FAKE)
        manager = jobs.JobManager(FakeHost(), folder / "jobs")
        manager.start(resume_request(folder / "run", "waits"))
        wait_for(manager, lambda state: state["step"] == 2)
        print(manager._process.pid)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert gone(int(done.stdout), 1)
    kept = json.loads((tmp_path / "jobs" / "last_job.json").read_text())
    assert (kept["status"], kept["message"]) == (
        "stopped",
        "stopped after step 2 of 9 by 'cancel\\n'",
    )


def test_the_manager_loads_nothing_heavy_into_its_host(package_folder, tmp_path):
    code = f"""
        import sys
        from importlib.util import module_from_spec, spec_from_file_location
        root = {str(package_folder)!r}
        spec = spec_from_file_location(
            "resalign_ext", root + "/__init__.py", submodule_search_locations=[root])
        sys.modules["resalign_ext"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
        from resalign_ext.scripts.resalign_webui.jobs import JobManager
        JobManager(None, {str(tmp_path)!r}).close()
        heavy = {{"torch", "numpy", "PIL", "safetensors", "diffusers", "tomli", "tqdm"}}
        print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
