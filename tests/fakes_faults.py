"""Small jobs of every kind for the tests of faults: plans, outputs, processes that die."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint

from resalign.backend.cli import main
from resalign.backend.run.stored import key_of, read_plan
from resalign.backend.run.trust import MARK, marked

HARDEN = """
checkpoint = "original.safetensors"
output = "hardened.safetensors"
device = "cpu"
[plan]
outer_steps = 2
warm_up_steps = 2
forget_batch = 1
retain_batch = 1
save_every = 1
[plan.forget_set]
prompts = ["bad"]
images = 1
sampling_steps = 1
[plan.retain_set]
prompts = ["good"]
images = 1
sampling_steps = 1
[plan.adapter]
rank = 1
targets = ["cross_attention_kv"]
[[plan.concepts]]
name = "bad"
prompts = ["bad"]
"""
DURABLE = (
    HARDEN.replace("[plan]\n", '[plan]\nmethod = "distil"\n').replace(
        "warm_up_steps = 2", "warm_up_steps = 0"
    )
    + """
[[plan.before]]
method = "erase"
[plan.erase]
samples = 2
batch = 2
targets = ["cross_attention_kv"]
[plan.distil]
batch = 1
learning_rate = 1e-4
warm_up_steps = 1
"""
)
PROBE = """
output = "probe"
device = "cpu"
[[checkpoints]]
name = "original"
path = "original.safetensors"
[[checkpoints]]
name = "hardened"
path = "hardened.safetensors"
[plan]
pictures = 1
[plan.forget_set]
prompts = ["bad"]
images = 1
sampling_steps = 1
[plan.retain_set]
prompts = ["good"]
images = 2
sampling_steps = 1
[plan.generation]
steps = 1
[[plan.concepts]]
name = "bad"
prompts = ["bad"]
[[plan.prompts]]
kind = "retain"
prompts = ["good", "fine"]
[[plan.merges]]
name = "half"
"""
RUN = "hardened.safetensors.run"
OUTPUTS = (
    "hardened.safetensors",
    "hardened-lora.safetensors",
    "hardened.md",
    "hardened-curves.png",
)


def begin(folder: Path, original: Path, *, durable: bool = False) -> Path:
    """Make a folder with plans and checkpoint; the checkpoint is a link, to save time."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.link(original, folder / "original.safetensors")
    except OSError:  # on another disk
        shutil.copyfile(original, folder / "original.safetensors")
    (folder / "harden.toml").write_text(DURABLE if durable else HARDEN)
    (folder / "probe.toml").write_text(PROBE)
    return folder


def finished_run(top: Path, original: Path | None = None) -> Path:
    """A folder with a finished run and what it wrote. original: its checkpoint, if there is one."""
    if original is None:
        path = top / "original.safetensors"
        original = write_tiny_checkpoint(path, dtype=torch.float32)
    folder = begin(top / "whole", original)
    assert main(["harden", str(folder / "harden.toml")]) == 0
    return folder


def original_fixture() -> Any:
    """The `original` that all jobs of a test file begin with."""

    @pytest.fixture(scope="module")
    def original(tmp_path_factory) -> Path:
        path = tmp_path_factory.mktemp("original") / "original.safetensors"
        return write_tiny_checkpoint(path, dtype=torch.float32)

    return original


def moved(place: Path, folder: Path) -> Path:
    """Copy a folder with a finished run, whose job then names the copy and is this user's again."""
    shutil.copytree(place, folder)
    job = folder / RUN / "job.json"
    fields = json.loads(job.read_text().replace(str(place), str(folder)))
    del fields["checksum"], fields[MARK]
    job.write_text(json.dumps(marked(fields, key_of(read_plan(folder / RUN)))))
    return folder


def without_outputs(folder: Path) -> Path:
    for name in OUTPUTS:
        (folder / name).unlink(missing_ok=True)
    return folder


def results(folder: Path) -> dict[str, str]:
    """Digests of the outputs; of a checkpoint, whose header has a date, of what follows that."""
    found = {}
    for name in OUTPUTS[:2]:
        if (folder / name).exists():
            data = (folder / name).read_bytes()
            end = 8 + int.from_bytes(data[:8], "little")
            found[name] = hashlib.sha256(data[end:]).hexdigest()
    return found


def errors_in(said: str) -> list[str]:
    """Return the lines of an error output with which a command ended."""
    lines = [line for line in said.splitlines() if line.startswith("resalign: ")]
    return [line for line in lines if not line.startswith("resalign: warning: ")]


def evaluations(folder: Path) -> dict:
    """Evaluations by model and attack: the last of each counts, as for the report."""
    lines = (folder / "probe" / "looks.jsonl").read_text().splitlines()
    found = [{**json.loads(line), "seconds": 0, "checksum": 0} for line in lines]
    return {(look["model"], look["attack"]): look for look in found}


def started(command: list[str]) -> int:
    """Begin a command in a process of its own, without the seconds that imports take."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # its own is shared with us, and would die locked
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            stream.flush()
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        code = main(command)
    finally:
        os._exit(code)


def seconds_of(command: list[str]) -> float:
    """Run a command to its end in a process of its own; return how long it took."""
    begun = time.monotonic()
    assert os.waitpid(started(command), 0)[1] == 0, command
    return time.monotonic() - begun


def killed_after(command: list[str], seconds: float) -> bool:
    """Kill a command with SIGKILL; return False if it had ended before."""
    process, end = started(command), time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])
