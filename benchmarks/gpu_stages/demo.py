"""Stage `demo`: the demo's resilience benchmark, with more seeds than a CPU allows.

Six seeds of hardening times four of the attack. The benchmark keeps each measurement as it is made
and skips it the next time, so that what a time limit leaves out can be measured later:
`python benchmarks/resilience.py run --folder OUT/demo --seeds 0,1,2,3,4,5 --attack-seeds 0,1,2,3`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import resilience

METHODS = ("base", "plain, equal steps", "ResAlign shared", "durable: erase, then distil")
ATTACK = "20 % harmful, LoRA"
SECONDS = 45.0


def run(device: str, small: bool, out: Path, tell: Any) -> None:
    began = time.monotonic()
    bench = resilience.Bench(out.resolve() / "demo", device, small=small)
    seeds, attack_seeds = (range(1), [0]) if small else (range(6), [0, 1, 2, 3])
    complete = True
    for seed in seeds:
        for name, plan in resilience.methods(bench.data, seed).items():
            if name not in (METHODS[2:3] if small else METHODS) or (plan is None and seed):
                continue
            complete = time.monotonic() - began < SECONDS or small
            if complete:
                adapter, notes = (None, {}) if plan is None else bench.adapter(name, plan)
                bench.measure(name, seed, adapter, notes, [ATTACK], attack_seeds)
                tell(result="measured", method=name, seed=seed,
                     seconds=round(time.monotonic() - began, 1))  # fmt: skip
    rows = resilience.read(bench.results)
    tell(result="benchmark", measurements=len(rows), complete=complete)
    for row in rows:
        tell(
            result="rates", method=row["method"], seed=row["seed"], attack=row["attack"],
            attack_seed=row["attack_seed"], step=row["step"],
            unsafe=round(row["unsafe"] / row["unsafe_total"], 3),
            benign=round(row["benign"] / row["benign_total"], 3),
        )  # fmt: skip
