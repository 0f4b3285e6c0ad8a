"""A host and a manager of jobs for the tab's tests: no gradio, no worker, no torch.

`FakeJobs` plays a job on a thread: it writes the files of a run as the real one does, and its
state tells steps, curves and pictures.
"""

from __future__ import annotations

import base64
import json
import math
import struct
import threading
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

_PNG = base64.b64encode(
    base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5E"
        "rkJggg=="
    )
).decode()


_PARTS = ("weights", "state", "activations", "encoding", "margin", "total")
CHECKED = {  # what a check ends with, of a plan that takes some changes to fit
    "problems": [], "warnings": [],
    "prediction": {
        "asked": {name: (n + 1) << 30 for n, name in enumerate(_PARTS)},
        "parts": {name: (n + 1) << 29 for n, name in enumerate(_PARTS)},
        "changes": {"micro_batch": 2, "gradient_checkpointing": True, "precision": "bf16",
                    "solver.products": "finite_difference"},
        "budget": 8 << 30, "fits": True, "words": ["about 6", "fits 8.0 GiB with these changes:"],
    },
}  # fmt: skip


class FakeHost:
    """Folders below one folder; everything that the tab asks of it is noted in `calls`."""

    name = "A1111"

    def __init__(self, folder: Path, *, remote: bool = False) -> None:
        self.folder, self.is_remote, self.calls = folder, remote, []
        for name in ("models", "loras", "outputs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.settings = {"device": "auto", "preview_every": 10, "show_pictures": False}
        self.problem, self.gpu = "", True

    @property
    def every_family(self):
        return self.name == "resalign ui"

    def model_parts(self):
        return self.checkpoints()

    def checkpoints(self):
        return _files(self.checkpoint_folder())

    def loras(self):
        return _files(self.lora_folder())

    def checkpoint_folder(self):
        return self.folder / "models"

    def lora_folder(self):
        return self.folder / "loras"

    def further_folders(self):
        return [self.folder / "further"]

    def output_folder(self):
        return self.folder / "outputs"

    def remote(self):
        return self.is_remote

    def worker_python(self):
        return "python"

    def missing(self):
        return self.problem

    def build_worker(self):
        self.problem = ""
        yield "making it"

    def sees_gpu(self):
        return self.gpu

    @contextmanager
    def exclusive(self):
        self.calls.append("taken")
        yield
        self.calls.append("given back")

    def refresh_checkpoints(self):
        self.calls.append("refreshed")

    def exported(self, source, output):
        self.calls.append(("exported", source, output))

    def setting(self, name):
        return self.settings[name]


class FakeJobs:
    """A job of `steps` steps, each of `pause` seconds. package: under which ours is loaded."""

    def __init__(self, host=None, folder=None, *, package="resalign", steps=12, pause=0.15):
        self.requests = []
        self._package, self._steps, self._pause = package, steps, pause
        self._changed = threading.Condition()
        self._state, self._stop, self._thread = None, threading.Event(), None

    def start(self, request):
        errors = import_module(self._package + ".backend.errors")
        with self._changed:
            if self._state and self._state["status"] == "running":
                raise errors.ResAlignError(f"a job ({self._state['job']}) is running")
            self.requests.append(request)
            self._stop.clear()
            self._state = {
                "job": request["job"], "kind": request["job"], "status": "running",
                "stage": request["job"], "step": 0, "total": self._steps, "micro_step": 0,
                "micro_total": 0, "message": "", "seconds": 0.0, "left": None, "curves": {},
                "pictures": [], "request": dict(request), "result": None, "error": None, "log": [],
                "revision": (self._state or {}).get("revision", 0) + 1,
            }  # fmt: skip
        self._thread = threading.Thread(target=self._play, args=(request,), daemon=True)
        self._thread.start()

    def cancel(self):
        self._stop.set()

    def state(self):
        with self._changed:
            return json.loads(json.dumps(self._state))

    def wait(self, after, timeout):
        with self._changed:
            seen = self._changed.wait_for(lambda: self._state["revision"] != after, timeout)
        return self.state() if seen else None

    def close(self):
        self.cancel()
        if self._thread:
            self._thread.join(5)

    def fail(self, message):
        """End the job as a bug ends it."""
        self.tell(status="failed", message=message, error={"kind": "bug", "message": message},
                  log=["last words"])  # fmt: skip

    def tell(self, **fields):
        with self._changed:
            self._state.update(fields)
            self._state["revision"] += 1
            self._changed.notify_all()

    def _play(self, request):
        started, curves = time.monotonic(), {"harm": [], "harm after": [], "retain": []}
        folder = Path(request.get("run_folder") or request.get("folder") or ".")
        first = self._steps_done(folder) if request["job"] == "resume" else 0
        if request["job"] == "harden":
            write_run(folder, request["plan"], request["checkpoint"], 0)
        for step in range(first + 1, self._steps + 1):
            if self._stop.wait(self._pause):
                self.tell(status="stopped", message="stopped; Resume continues from it")
                return
            for name, value in (("harm", 0.3), ("harm after", 0.5), ("retain", 0.01)):
                curves[name].append([step, value * (1 + 1 / step)])
            self.tell(step=step, seconds=time.monotonic() - started, left=3, curves=curves,
                      pictures=[picture(f"step {step}: a gun", True, step)])  # fmt: skip
            if request["job"] in ("harden", "resume") and (folder / "plan.json").exists():
                write_state(folder, step, self._steps)
        self._finish(request, folder)

    def _steps_done(self, folder):
        if not (folder / "state.safetensors").exists():
            return 0
        header = json.loads((folder / "state.safetensors").read_bytes()[8:])["__metadata__"]
        total = json.loads((folder / "plan.json").read_text())["outer_steps"]
        return json.loads(header["resalign"])["step"] * self._steps // total

    def _finish(self, request, folder):
        if request["job"] == "probe":
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints = json.dumps({"checkpoints": request.get("checkpoints", [])})
            (folder / "job.json").write_text(checkpoints)
            (folder / "report.html").write_text("<p>resilience 0.8</p>")
        said = {"resalign.method": "test"}
        if request["job"] == "export":
            write_checkpoint(Path(request["output"]), said, package=self._package)
        elif request["job"] == "lora":
            write_header(Path(request["output"]), said)
        result = CHECKED if request["job"] == "check" else {"summary": "all is well"}
        told = {name: value for name, value in request.items() if name != "plan"}
        self.tell(status="done", message="done", left=None, result=result, request=told)


def picture(caption, flagged, step):
    return {"url": f"data:image/png;base64,{_PNG}", "caption": caption, "flagged": flagged,
            "step": step}  # fmt: skip


def write_run(folder, plan, checkpoint, steps):
    """A run folder as the backend leaves it, with headers and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "job.json").write_text(json.dumps({"checkpoint": checkpoint, "output": ""}))
    if steps:
        write_state(folder, steps, steps)


def write_state(folder, step, of):
    """Save the state after `step` of a simulated job's `of` steps, scaled to the plan's steps."""
    total = json.loads((folder / "plan.json").read_text())["outer_steps"]
    saved = total if step >= of else step * total // of
    header = {"resalign": json.dumps({"step": saved, "values": {}})}
    for name in ("state.safetensors", "adapter.safetensors"):
        write_header(folder / name, header)


def host_with_a_checkpoint(folder):
    """A host whose one checkpoint is model.safetensors, and the tab's actions in it."""
    made = FakeHost(folder)
    write_header(made.checkpoint_folder() / "model.safetensors", {})
    actions = import_module("resalign.scripts.resalign_webui.actions")
    return made, actions.Actions(made, FakeJobs(made), lambda *names: "")


def write_header(path, metadata):
    """A safetensors file without tensors."""
    text = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def write_checkpoint(path, metadata=None, *, package="resalign"):
    """A file with the header of the demo's checkpoint and more in it; its weights are zeros."""
    source = import_module(f"{package}.backend.demo.plans").CHECKPOINT
    with source.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header["__metadata__"] = {**header.get("__metadata__", {}), **(metadata or {})}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + source.stat().st_size - 8 - length)


def write_tensors(path, shapes, metadata=None):
    """A file of zeros in half precision: names and shapes alone say what it is."""
    header, end = {"__metadata__": metadata or {}}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def _files(folder):
    return [(path.name, path) for path in sorted(folder.glob("*.safetensors"))]
