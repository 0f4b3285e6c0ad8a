"""The command line under a real launcher, as a user starts several processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from fakes_data import save_pictures
from fakes_ranks import free_port, until
from safetensors.torch import load_file
from test_cli_probe import PLAN as PROBE

from resalign.backend.probe.results_io import read_probe
from resalign.backend.run.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PLAN = """
checkpoint = "model.safetensors"
output = "out.safetensors"
device = "cpu"
[plan]
outer_steps = {steps}
warm_up_steps = 1
save_every = {steps}
configurations_per_step = 2
learning_rate = 1e-2
resolution = 64
forget_set = {{folder = "{here}/forget"}}
retain_set = {{folder = "{here}/retain"}}
[plan.regulator]
enabled = false
[[plan.concepts]]
name = "bad"
prompts = ["bad"]
[[plan.fine_tunes]]
name = "fast"
learning_rate = 5e-2
steps = {inner}
batch = 2
[[plan.fine_tunes]]
name = "slow"
learning_rate = 1e-2
steps = {inner}
batch = 2
"""


@pytest.fixture
def job(tmp_path):
    """Writes a folder with a checkpoint, pictures and a plan."""

    def make(name: str, steps: int, inner: int) -> Path:
        here = tmp_path / name
        here.mkdir()
        write_tiny_checkpoint(here / "model.safetensors", dtype=torch.float32)
        for part in ("forget", "retain"):
            save_pictures(here / part, {f"{i}.png": f"{part} {i}" for i in range(3)})
        (here / "plan.toml").write_text(PLAN.format(here=tmp_path / name, steps=steps, inner=inner))
        return here

    return make


def command(count: int, *arguments: str) -> list[str]:
    alone = [sys.executable, "-m", "resalign", *arguments]
    if count == 1:
        return alone
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", str(count), "--main_process_port", str(free_port())]
    return [*launch, *alone[1:]]


def launch(folder: Path, count: int, *arguments: str) -> subprocess.Popen:
    # Without a GPU, --multi_gpu starts as many processes all the same; the plan says `cpu`.
    return subprocess.Popen(
        command(count, *arguments), cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen, seconds: float = 120) -> tuple[int, str]:
    try:
        text, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            process.kill()
    return process.returncode, text


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out.safetensors.run" / "adapter.safetensors")


def workers(launcher: subprocess.Popen) -> dict[int, int]:
    """Process numbers of the ranks, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            lines = (folder / "environ").read_bytes().split(b"\0")
            rank = [line for line in lines if line.startswith(b"RANK=")]
            if parent == launcher.pid and rank:
                found[int(rank[0][5:])] = int(folder.name)
    return found


def test_accelerate_launches_two_processes_that_find_what_one_does(job):
    """The adapters are bitwise equal, and only the first rank writes files and messages."""
    one = job("one", 4, 2)
    shutil.copytree(one, two := one.with_name("two"))
    code, text = ended(launch(one, 1, "harden", "plan.toml"))
    assert code == 0, text
    code, text = ended(launch(two, 2, "harden", "plan.toml"))
    assert code == 0, text
    assert "2 processes" in text and text.count("model card") == 1
    found, expected = adapter(two), adapter(one)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert (two / "out.safetensors").exists()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks in /proc")
@pytest.mark.parametrize("ending", ["a rank is killed", "Ctrl-C"])
def test_a_launched_run_that_is_stopped_says_how_to_go_on_and_goes_on_alone(job, ending):
    """The launcher stops the ranks that are left: the first saves its state and says why."""
    here = job("run", 12, 10)
    run = here / "out.safetensors.run"
    process = launch(here, 2, "harden", "plan.toml")
    try:
        until(lambda: (run / "steps.jsonl").exists() or process.poll() is not None, 100)
        until(lambda: (run / "steps.jsonl").read_text().count("\n") >= 2, 60)
        if ending == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        else:
            os.kill(workers(process)[1], signal.SIGKILL)
        code, text = ended(process)
    finally:
        process.kill()
    assert code != 0
    with RunFolder.open(run, read_only=True) as folder:
        saved = folder.steps_saved
    assert saved >= 2
    why = "interrupted" if ending == "Ctrl-C" else "rank 1 of 2 died"
    told = [line for line in text.splitlines() if "continue with: resalign resume" in line]
    assert len(told) == 1 and why in told[0] and f"after step {saved} of 12" in told[0], text
    assert "/backend/" not in text, text  # the launcher's own traceback is none of ours
    if ending == "Ctrl-C":
        return
    code, text = ended(launch(here, 1, "resume", str(run)), 250)
    assert code == 0 and f"continuing after step {saved}" in text, text


def test_accelerate_launches_a_probe_that_reports_what_one_process_does(tmp_path):
    """`probe` under a launcher, and `resume` of it when it is done: one report, told once."""
    original = write_tiny_checkpoint(tmp_path / "original.safetensors", dtype=torch.float32)
    shutil.copy(original, tmp_path / "hardened.safetensors")
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(PROBE.format(output=tmp_path / name))
    for name, count in (("one", 1), ("two", 2)):
        code, text = ended(launch(tmp_path, count, "probe", f"{name}.toml", "--device", "cpu"))
        assert code == 0 and text.count("report.html") == 1, text
    evaluations = [
        [
            evaluation.to_json() | {"seconds": 0}
            for evaluation in read_probe(tmp_path / name).evaluations
        ]
        for name in ("one", "two")
    ]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 6
    code, text = ended(launch(tmp_path, 2, "resume", "two"))
    assert code == 0 and text.count("report.html") == 1, text
