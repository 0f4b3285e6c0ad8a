"""A worker that speaks the protocol and does no work, and what hosts of it need.

How it behaves is said in the field `device` of a `resume` request.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FAKE = """
import json, os, signal, sys, time

def send(event, **fields):
    print("@resalign " + json.dumps({"event": event, **fields}), flush=True)

def state(step, status="running", **more):
    base = {"kind": "harden", "status": status, "stage": "harden", "step": step, "total": 9,
            "micro_step": 0, "micro_total": 0, "message": "step %d" % step, "seconds": 1.0,
            "left": 3, "curves": {"harm": [[step, 0.5]]}}
    send("state", state={**base, **more})

request = json.loads(sys.stdin.readline())
how = request["device"]
if "python" in how:
    print("PYTHONPATH" in os.environ, os.getpid() == os.getsid(0))
send("hello", version="0", protocol=1, python="3", torch="2", device="cpu")
state(1, pictures=[{"url": "data:x", "caption": "c", "flagged": True, "step": 1}])
state(2)
if "noise" in how:
    print("a library speaks")
    print('@resalign {"broken')
    print("a warning of its own", file=sys.stderr)
if "user" in how:
    state(2, "failed")
    send("failed", kind="user", message="give another folder")
    sys.exit(2)
if "killed" in how:
    print("the last thing it said", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
if "silent" in how:
    sys.exit(7)
if "child" in how:
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("child", child.pid, flush=True)
if "deaf" in how:
    if "undying" in how:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
if "waits" in how:
    line = sys.stdin.readline()  # cancel, or the end
    state(2, "stopped")
    send("stopped", message="stopped after step 2 of 9 by %r" % line)
    sys.exit(130)
state(9, "done")
send("done", result={"run_folder": request["run_folder"]})
"""


class FakeHost:
    """Counts what is done with its queue; can be told to fail, or to keep the queue."""

    def __init__(self) -> None:
        self.python = sys.executable
        self.queue = threading.Lock()
        self.entered = self.left = 0
        self.fails_at = ""

    def worker_python(self) -> str:
        return self.python

    @contextmanager
    def exclusive(self):
        with self.queue:
            if self.fails_at == "entering":
                raise RuntimeError("no memory to be freed")
            self.entered += 1
            try:
                yield
            finally:
                self.left += 1
            if self.fails_at == "leaving":
                raise RuntimeError("the model does not come back")


def use_fake(monkeypatch: Any, folder: Path) -> None:
    """Let managers start the fake worker."""
    from resalign.backend.worker import process

    path = folder / "fake_worker.py"
    path.write_text(FAKE)
    monkeypatch.setattr(process, "WORKER", path)


def resume_request(folder: Path, how: str) -> dict[str, Any]:
    """A request that is valid, for the fake."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps({}))
    return {"job": "resume", "run_folder": str(folder), "device": how}


def wait_for(manager: Any, condition: Any, seconds: float = 30.0) -> dict[str, Any]:
    """The first state that `condition` accepts."""
    end, revision = time.monotonic() + seconds, -1
    while time.monotonic() < end:
        state = manager.wait(revision, 1.0)
        if state is None:
            continue
        revision = state["revision"]
        if condition(state):
            return state
    raise AssertionError(f"not within {seconds} s: {manager.state()}")


def ended(state: dict[str, Any]) -> bool:
    return state["status"] != "running"


def gone(pid, seconds):
    """True if a process that is not a child of ours ends within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True  # dead; whoever inherited it has not looked yet
        except ProcessLookupError:
            return True
        except FileNotFoundError:  # between the two looks, or no Linux
            pass
        time.sleep(0.2)
    return False


@contextmanager
def small_disk(folder: Path, megabytes: int):
    """A disk that a test may fill, mounted on a new folder; skips where that is not possible."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount the small disk that this test fills")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("the small disk that this test fills cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def finished_demo_run(folder: Path) -> Path:
    """A run that nobody has done: on a copy of the demo checkpoint in `folder`, with an adapter of
    one module. Takes no time, as it needs no model. Returns its folder."""
    import torch
    from safetensors import safe_open

    from resalign.backend.adapter.lora import Adapter
    from resalign.backend.demo.plans import CHECKPOINT
    from resalign.backend.plan.concept import Concept
    from resalign.backend.plan.hardening import HardeningPlan
    from resalign.backend.plan.job import Job
    from resalign.backend.run.folder import RunFolder

    block = "transformer_blocks.0.attn1.to_q"
    name = f"mid_block.attentions.0.{block}"
    with safe_open(CHECKPOINT, framework="pt") as file:
        weight = file.get_slice(f"model.diffusion_model.middle_block.1.{block}.weight")
        out, into = weight.get_shape()
    random = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.lora_A.weight": torch.randn(4, into, generator=random),
        f"{name}.lora_B.weight": torch.randn(out, 4, generator=random),
    }
    source = shutil.copy(CHECKPOINT, folder / "model.safetensors")
    plan = HardeningPlan(
        concepts=(Concept("weapon", ("a pistol",)),), outer_steps=3, warm_up_steps=1
    )
    job = Job(checkpoint=str(source), output=str(folder / "unused.safetensors"), plan=plan)
    with RunFolder.create(folder / "run", job) as run:
        run.save_state(plan.outer_steps, {"x": torch.zeros(1)}, {})
        run.save_adapter(Adapter(tensors, 4, 4.0))
    return folder / "run"
