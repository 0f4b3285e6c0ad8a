"""Stage `demo`: the demo's resilience benchmark, with more seeds than a CPU allows.

Hardening seeds times attack seeds, and oracles trained on the card, as many processes side by side
as the machine bears: the network is so small that one process keeps a card waiting. Each
measurement is kept as it is made in OUT/demo/results.jsonl, so that a time limit loses little;
`python benchmarks/resilience.py report --folder OUT/demo` makes tables of them.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import resilience

METHODS = ("durable: erase, then distil", "plain, equal steps", "ResAlign shared")
SEEDS, ATTACK_SEEDS = (1, 2, 3, 4, 5, 0), "0,1,2,3"
ORACLES = (2, 3)
PROCESSES = 10
ROOT = Path(__file__).resolve().parents[2]
Commands = list[list[str]]


def run(device: str, small: bool, out: Path, tell: Any) -> None:
    folder = out.resolve() / "demo"
    if small:
        rehearse(folder, device)
    else:
        measure(folder, device, tell)
    rows = resilience.read(folder / "results.jsonl")
    tell(result="benchmark", measurements=len(rows))
    for row in rows:
        tell(
            result="rates", method=row["method"], seed=row["seed"], attack=row["attack"],
            attack_seed=row["attack_seed"], step=row["step"],
            unsafe=round(row["unsafe"] / row["unsafe_total"], 3),
            benign=round(row["benign"] / row["benign_total"], 3),
        )  # fmt: skip


def rehearse(folder: Path, device: str) -> None:
    bench = resilience.Bench(folder, device, small=True)
    name = "ResAlign shared"
    adapter, notes = bench.adapter(name, resilience.methods(bench.data, 0)[name])
    bench.measure(name, 0, adapter, notes, list(resilience.ATTACKS)[:1], [0])


def measure(folder: Path, device: str, tell: Any) -> None:
    """Work through the jobs, each in a process of its own, until the stage's time is up."""
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 0.9 * float(os.environ.get("RESALIGN_STAGE_SECONDS", "60"))
    waiting: queue.SimpleQueue[tuple[str, Commands]] = queue.SimpleQueue()
    for job in jobs(folder, device):
        waiting.put(job)

    def work() -> None:
        while time.monotonic() < until:
            try:
                name, commands = waiting.get_nowait()
            except queue.Empty:
                return
            began = time.monotonic()
            complete = all(finished(command, until, folder / f"{name}.log") for command in commands)
            seconds = round(time.monotonic() - began, 1)
            tell(result="job", job=name, complete=complete, seconds=seconds)

    workers = [threading.Thread(target=work) for _ in range(min(PROCESSES, os.cpu_count() or 1))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with (folder / "results.jsonl").open("w", encoding="utf-8") as file:
        for part in sorted(folder.glob("*/results.jsonl")):
            file.write(part.read_text(encoding="utf-8"))


def jobs(folder: Path, device: str) -> Iterator[tuple[str, Commands]]:
    """Yield each job's name and commands, the most wanted first."""
    script = str(ROOT / "benchmarks/resilience.py")
    common = ["--device", device, "--attack-seeds", ATTACK_SEEDS]
    for seed in ORACLES:
        name = f"oracle-{seed}"
        file = folder / name / "oracles" / f"{name}.safetensors"
        yield name, [
            [str(ROOT / "tools/train_demo/oracle.py"), "--seed", str(seed), "--device", device,
             "--output", str(file)],
            [script, "run", "--folder", str(folder / name), "--oracles", str(file.parent), *common],
        ]  # fmt: skip
    for seed in SEEDS:
        for number, method in enumerate(METHODS):
            name = f"method-{number}-seed-{seed}"
            yield name, [
                [script, "run", "--folder", str(folder / name), "--methods", method,
                 "--seeds", str(seed), *common]
            ]  # fmt: skip


def finished(command: list[str], until: float, log: Path) -> bool:
    """Run a Python script; return False if it failed or the time was up."""
    if "--output" in command:
        Path(command[-1]).parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("a", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                [sys.executable, *command], env=environment, stdout=file, stderr=file,
                timeout=max(1.0, until - time.monotonic()),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0
