"""The worker for real: processes that are stopped, killed, and outlive nobody."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fakes_worker import FakeHost, ended, gone, small_disk, wait_for

from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import to_json
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.removal import averaged
from resalign.backend.run.folder import RunFolder
from resalign.backend.worker.protocol import DONE, STOPPED, USER, parse
from resalign.scripts.resalign_webui.jobs import JobManager

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="these processes are killed by signals"),
]
STEPS = 12
PLAN = HardeningPlan(
    concepts=(
        Concept("weapon", ("a pistol",), images=ImageSet(prompts=("a pistol",), images=2,
                                                         sampling_steps=2)),
    ),
    retain_set=ImageSet(prompts=("a cat",), images=2, sampling_steps=2),
    outer_steps=STEPS, warm_up_steps=STEPS, forget_batch=1, retain_batch=1, save_every=1,
)  # fmt: skip
LONG = 5_000  # outer steps: nobody waits for them


def harden_request(folder, steps=STEPS):
    plan = to_json(PLAN) | {"outer_steps": steps, "warm_up_steps": steps}
    return {
        "job": "harden", "checkpoint": "demo", "plan": plan, "run_folder": str(folder),
        "device": "cpu", "preview_every": 0,
    }  # fmt: skip


def spawn(package_folder, request):
    process = subprocess.Popen(
        [sys.executable, "-I", "-u", package_folder / "backend/worker/__main__.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return process


def read_until(process, condition):
    """Events up to the first that `condition` accepts."""
    seen = []
    for line in process.stdout:
        seen.append(parse(line))
        if condition(seen[-1]):
            return seen
    raise AssertionError(f"the worker ended with {process.wait()} after {seen[-1:]}")


def steps_done(event):
    return outer_steps(event["state"]) if event["event"] == "state" else 0


def outer_steps(state):
    """Outer steps taken: other stages, hashing for one, count steps of their own."""
    return state["step"] if state["stage"] == "harden" else 0


@pytest.fixture(scope="module")
def reference(package_folder, tmp_path_factory):
    """The adapter of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    with spawn(package_folder, harden_request(folder)) as process:
        events = read_until(process, lambda event: event["event"] == "done")
        process.stdin.close()
        assert process.wait() == DONE
    names = [event["event"] for event in events]
    assert names[0] == "hello" and set(names[1:-1]) == {"state"}
    assert events[0]["device"] == "cpu" and events[0]["protocol"] == 1
    return (folder / "adapter.safetensors").read_bytes()


def resumed(package_folder, folder):
    """The adapter that the run ends in when it is gone on with."""
    request = {"job": "resume", "run_folder": str(folder), "preview_every": 0}
    with spawn(package_folder, request) as process:
        read_until(process, lambda event: event["event"] == "done")
        process.stdin.close()
    return (folder / "adapter.safetensors").read_bytes()


def cancel(process):
    process.stdin.write("cancel\n")
    process.stdin.flush()


@pytest.mark.parametrize(
    "stop", [cancel, lambda process: process.stdin.close(), lambda process: process.terminate()],
    ids=["cancel", "end of stdin", "SIGTERM"],
)  # fmt: skip
def test_however_it_is_stopped_it_goes_on_to_the_same_bytes(
    stop, package_folder, tmp_path, reference
):
    with spawn(package_folder, harden_request(tmp_path / "run")) as process:
        read_until(process, lambda event: steps_done(event) >= 2)
        stop(process)
        last = [parse(line) for line in process.stdout]
        assert process.wait() == STOPPED
    assert last[-1]["event"] == "stopped" and "Resume continues" in last[-1]["message"]
    assert last[-2]["state"]["status"] == "stopped"
    assert 2 <= RunFolder.open(tmp_path / "run", read_only=True).steps_saved < STEPS
    assert resumed(package_folder, tmp_path / "run") == reference


def test_a_killed_worker_is_told_and_its_run_goes_on(package_folder, tmp_path, reference):
    jobs = JobManager(FakeHost(), tmp_path / "jobs")
    jobs.start(harden_request(tmp_path / "run"))
    wait_for(jobs, lambda state: outer_steps(state) >= 2, 120)
    os.kill(jobs._process.pid, signal.SIGKILL)
    state = wait_for(jobs, ended)
    assert state["status"] == "failed" and "killed (SIGKILL)" in state["message"]
    jobs.start({"job": "resume", "run_folder": str(tmp_path / "run"), "preview_every": 0})
    state = wait_for(jobs, ended, 120)
    jobs.close()
    assert state["status"] == "done" and state["result"]["steps"] == STEPS
    assert [x for x, _ in state["curves"]["harm"]] == list(range(averaged(STEPS), STEPS + 1))
    assert (tmp_path / "run" / "adapter.safetensors").read_bytes() == reference


def test_a_disk_that_fills_up_in_mid_run_is_told_and_the_run_goes_on(package_folder, tmp_path):
    with small_disk(tmp_path / "disk", 24) as disk:
        with spawn(package_folder, harden_request(disk / "run", 30)) as process:
            read_until(process, lambda event: steps_done(event) >= 2)
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(b"\0" * 4096)
            (failed,) = [e for e in read_until(process, is_an_end) if is_an_end(e)]
            assert process.wait() == USER
        assert (
            failed["kind"] == "user" and "No space left on device): make room" in failed["message"]
        )
        (disk / "filler").unlink()
        saved = RunFolder.open(disk / "run", read_only=True).steps_saved
        assert 1 <= saved < 30
        request = {"job": "resume", "run_folder": str(disk / "run"), "preview_every": 0}
        with spawn(package_folder, request) as process:
            assert read_until(process, is_an_end)[-1]["event"] == "done"
            process.stdin.close()


def is_an_end(event):
    return event["event"] in ("done", "stopped", "failed")


def test_a_worker_does_not_outlive_a_killed_host(package_folder, tmp_path):
    request = harden_request(tmp_path / "run", LONG)
    code = f"""
        import json, sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import conftest
        from fakes_worker import FakeHost, wait_for
        from test_worker_process import outer_steps
        from resalign.scripts.resalign_webui.jobs import JobManager
        jobs = JobManager(FakeHost(), {str(tmp_path / "jobs")!r})
        jobs.start(json.loads({json.dumps(request)!r}))
        wait_for(jobs, lambda state: outer_steps(state) >= 2, 120)
        print(jobs._process.pid, flush=True)
        time.sleep(600)
    """
    host = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    with host:
        worker = int(host.stdout.readline())
        os.kill(worker, 0)
        host.kill()
    assert gone(worker, 60), "the worker still runs"
    run = RunFolder.open(tmp_path / "run")  # nobody holds its lock
    assert 2 <= run.steps_saved < LONG
    run.close()
    again = JobManager(FakeHost(), tmp_path / "jobs")
    assert again.state()["status"] == "stopped" and "the host ended" in again.state()["message"]
    again.close()


def test_a_close_stops_the_worker_before_it_returns(tmp_path):
    """Reload UI and an orderly end of the host."""
    jobs = JobManager(FakeHost(), tmp_path / "jobs")
    jobs.start(harden_request(tmp_path / "run", LONG))
    wait_for(jobs, lambda state: outer_steps(state) >= 1, 120)
    worker = jobs._process.pid
    jobs.close()
    assert gone(worker, 0.5) and jobs.state()["status"] == "stopped"
    assert RunFolder.open(tmp_path / "run", read_only=True).steps_saved >= 1
