"""A real ComfyUI for the tests: started on the CPU with a base directory of its own, and spoken to.

COMFYUI_DIR is its folder, COMFYUI_PYTHON an interpreter with its requirements and ours, and
COMFYUI_FLAGS what its command line gets besides, such as --front-end-root.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHECKPOINT = "reduced.safetensors"
Graph = dict[str, dict[str, Any]]


def host_paths() -> tuple[Path, str]:
    """The folder and the interpreter, or a skip that says what to set."""
    folder, python = os.environ.get("COMFYUI_DIR"), os.environ.get("COMFYUI_PYTHON")
    if not folder or not python:
        pytest.skip("COMFYUI_DIR and COMFYUI_PYTHON are not set: no ComfyUI to test in")
    return Path(folder), python


class Host:
    """A running ComfyUI."""

    def __init__(self, address: str, base: Path, process: subprocess.Popen[bytes]) -> None:
        self.address, self.base, self.process = address, base, process
        self.info = self.get("/object_info")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, value: Any) -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
        return json.loads(text) if text else None

    def queue(self, graph: Graph) -> str:
        """Queue a graph in the API format; inputs that are left out get the node's default."""
        answer = self.post("/prompt", {"prompt": self.filled(graph), "client_id": "tests"})
        assert not answer["node_errors"], answer
        return answer["prompt_id"]

    def wait(self, prompt: str, *, timeout: float = 800) -> dict[str, Any]:
        """The finished prompt's history. It is filled a little after the last message."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt}")
            if prompt in history:
                return history[prompt]
            time.sleep(0.3)
        raise AssertionError(f"{prompt} did not end within {timeout} s")

    def run(self, graph: Graph, **options: Any) -> dict[str, Any]:
        """Outputs of a graph that must succeed."""
        history = self.wait(self.queue(graph), **options)
        assert history["status"]["status_str"] == "success", failure(history)
        return history["outputs"]

    def filled(self, graph: Graph) -> Graph:
        found = {}
        for key, one in graph.items():
            required = self.info[one["class_type"]]["input"].get("required", {})
            defaults = {name: _default(kind) for name, kind in required.items()}
            plain = {name: value for name, value in defaults.items() if value is not None}
            known = required | self.info[one["class_type"]]["input"].get("optional", {})
            given = {name: v for name, v in one["inputs"].items() if name in known}
            found[key] = {"class_type": one["class_type"], "inputs": plain | given}
        return found

    def rss(self) -> int:
        """Resident memory of the process in MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) // 1024

    def log(self) -> str:
        return (self.base / "log.txt").read_text(errors="replace")


def failure(history: dict[str, Any]) -> str:
    for name, message in history["status"]["messages"]:
        if name == "execution_error":
            trace = "".join(message["traceback"])[-2000:]
            return f"{message['node_type']}: {message['exception_message']}\n{trace}"
    return str(history["status"])


def reduced(graph: Graph, **changes: Any) -> Graph:
    """An example workflow at the size of the reduced checkpoint: 64 pixels, few steps, few images.

    changes: of Hardening Settings.
    """
    small = json.loads(json.dumps(graph))
    for one in small.values():
        kind, inputs = one["class_type"], one["inputs"]
        if kind == "CheckpointLoaderSimple":
            inputs["ckpt_name"] = CHECKPOINT
        elif kind == "ResAlign_ConceptList":
            inputs["images"] = ["90", 0]
        elif kind == "ResAlign_HardeningSettings":
            inputs |= {"preset": "fast", "resolution": 64, "outer_steps": 2, **changes}
        elif kind == "ResAlign_HardenModel":
            inputs |= {"retain": ["91", 0], "preview_every": 1}
        elif kind == "ResAlign_FineTuningSettings":
            inputs["preset"] = "quick"
        elif kind == "ResAlign_ResilienceProbe":
            inputs |= {"steps": 2, "images": 2, "sampling_steps": 2, "resolution": 64}
        elif kind == "EmptyLatentImage":
            inputs |= {"width": 64, "height": 64}
        elif kind == "KSampler":
            inputs["steps"] = 2
        elif kind in ("ResAlign_TryMyLora", "ResAlign_DrawConcept"):
            inputs |= {"width": 64, "height": 64, "steps": 2}
    for key, prompts in (("90", "a pistol"), ("91", "a cat\na tree")):
        inputs = {"prompts": prompts, "count": 2}
        small[key] = {"class_type": "ResAlign_ImageSet", "inputs": inputs}
    return small


def states(host: Host, node: str = "5") -> dict[str, Any]:
    """The state that a node's live widget shows; its status is empty if nothing was done yet."""
    return host.get(f"/resalign/live/{node}")["state"] or {"status": ""}


def working(host: Host) -> bool:
    """True if the node is at its outer steps; the state of an earlier prompt is not meant."""
    state = states(host)
    return state["status"] == "running" and state["stage"] == "harden"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def sampled(
    number: int, model: list[Any], prefix: str, *, cfg: float = 5.0, scheduler: str = "normal"
) -> Graph:
    """Two steps of Euler with the nodes 70 (text) and 71 (latent), saved under `prefix`."""
    first, second = str(number), str(number + 1)
    return {
        first: node("KSampler", model=model, seed=7, steps=2, cfg=cfg, sampler_name="euler",
                    scheduler=scheduler, denoise=1.0, positive=["70", 0], negative=["70", 0],
                    latent_image=["71", 0]),
        second: node("SaveLatent", samples=[first, 0], filename_prefix=prefix),
    }  # fmt: skip


def largest(one: Any, two: Any) -> float:
    return (one - two).abs().max().item()


def latent(host: Host, prefix: str) -> Any:
    """The newest of the latents that SaveLatent wrote by this name."""
    from safetensors.torch import load_file

    (newest,) = sorted((host.base / "output").glob(f"{prefix}*.latent"))[-1:]
    return load_file(newest)["latent_tensor"]


def until(condition: Callable[[], Any], timeout: float = 500) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            if condition():
                return
        except (urllib.error.HTTPError, json.JSONDecodeError):
            pass
        time.sleep(0.3)
    raise AssertionError("it did not come to that in time")


@contextmanager
def comfyui(base: Path, root: Path, port: int) -> Iterator[Host]:
    """Start ComfyUI with our pack and a reduced checkpoint below `base`; stop it at the end."""
    from host_checkpoints import write_reduced_checkpoint

    folder, python = host_paths()
    for name in ("custom_nodes", "models/checkpoints", "models/loras", "input", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / "resalign"
    if not link.exists():
        link.symlink_to(root, target_is_directory=True)
    checkpoint = base / "models/checkpoints" / CHECKPOINT
    if not checkpoint.exists():
        write_reduced_checkpoint(checkpoint)
    command = [
        python, "main.py", "--cpu", "--port", str(port), "--listen", "127.0.0.1",
        "--base-directory", str(base), "--disable-api-nodes", "--database-url",
        "sqlite:///:memory:", *shlex.split(os.environ.get("COMFYUI_FLAGS", "")),
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with (base / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        try:
            yield _started(address, base, process)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _started(address: str, base: Path, process: subprocess.Popen[bytes]) -> Host:
    end = time.monotonic() + 400  # a busy machine
    while time.monotonic() < end and process.poll() is None:
        try:
            return Host(address, base, process)
        except OSError:
            time.sleep(0.5)
    raise AssertionError("ComfyUI did not start:\n" + (base / "log.txt").read_text()[-3000:])


def _default(kind: Any) -> Any:
    """The default of a required input as /object_info gives it; None for a socket."""
    options = kind[1] if len(kind) > 1 else {}
    if "default" in options:
        return options["default"]
    choices = kind[0] if isinstance(kind[0], list) else options.get("options")
    if not choices:
        return None
    return choices[0]["key"] if isinstance(choices[0], dict) else choices[0]
