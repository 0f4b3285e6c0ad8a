"""Cost and savings of a quantised frozen base: the demo's plan with each `quantization`.

The same plan, seed, data and draws; only the denoiser's linear layers differ while the adapter is
found. Rates are those of the true checkpoint with that adapter, as an export has it, before and
after the attack of the first column of docs/benchmarks.md.

    python benchmarks/quantization.py --folder DIR [--seeds 0] [--attack-seeds 0]

A run that is in DIR already is not done again. It needs bitsandbytes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from resilience import ATTACKS, Bench, read

from resalign.backend.data.batches import EncodedData, prepare_data
from resalign.backend.demo.plans import resalign_plan
from resalign.backend.memory import trace
from resalign.backend.memory.tracker import LiveMemory
from resalign.backend.model.quantised import quantised
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.quantization import QUANTIZATIONS
from resalign.backend.run.folder import RunFolder
from resalign.backend.run.records import StepRecord

MIB = 2**20
FIRST = next(iter(ATTACKS))


def rounding(bench: Bench, plan: HardeningPlan, data: EncodedData) -> float:
    """‖ε_rounded − ε‖ / ‖ε‖ on 96 noised images of the retain set."""
    bucket, conditioning = data.retain.buckets[0], data.retain.conditioning
    random = torch.Generator().manual_seed(0)
    latents = bucket.latents[:96]
    noise = torch.randn(latents.shape, generator=random)
    timesteps = torch.randint(0, 1000, (len(latents),), generator=random)
    noised = bench.model.process.add_noise(latents, noise, timesteps)
    given = conditioning[bucket.captions[:96]]
    with torch.no_grad():
        true = bench.model.denoise(noised, timesteps, given)
        with quantised(bench.model, plan.quantization):
            found = bench.model.denoise(noised, timesteps, given)
    return float((found - true).norm() / true.norm())


def peak(bench: Bench, plan: HardeningPlan) -> str:
    """Format the MiB of live tensors in one outer step: the denoiser's weights, and the total."""
    model = bench.model
    found = trace.measure_step(model, plan, trace.random_data(model, 8), LiveMemory("cpu"))
    return f"{found.weights / MIB:.1f} / {found.peak / MIB:.1f}"


def curve(folder: Path) -> str:
    """Harm and retain loss: means of the first, second and last third of the outer steps."""
    run = RunFolder.open(folder, read_only=True)
    records = [StepRecord.from_json(record) for record in run.records()]
    third = len(records) // 3
    parts = [records[:third], records[third : 2 * third], records[2 * third :]]
    shown = []
    for name in ("harm", "retain"):
        means = [sum(getattr(r, name) for r in part) / len(part) for part in parts]
        shown.append(" ".join(f"{mean:.3f}" for mean in means))
    return " | ".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--attack-seeds", default="0")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.folder)
    attack_seeds = [int(part) for part in arguments.attack_seeds.split(",")]
    lines = [
        "| quantization | seed | rounds ε by | weights / peak, MiB | CPU s | harm in thirds | "
        "retain in thirds | " + " | ".join(("unsafe before", "benign before")) + " | "
        + " | ".join(f"unsafe @{mark} | benign @{mark}" for mark in ATTACKS[FIRST][1]) + " |"
    ]  # fmt: skip
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for seed in (int(part) for part in arguments.seeds.split(",")):
        for kind in QUANTIZATIONS:
            plan = replace(resalign_plan(bench.data, seed=seed), quantization=kind)
            bench.measure(kind, plan, seed, [FIRST], attack_seeds)
            data = prepare_data(bench.model, plan, cache=bench.folder / "cache")
            rows = [r for r in read(bench.results) if r["method"] == kind and r["seed"] == seed]
            rates = []
            for step in (0, *ATTACKS[FIRST][1]):
                own = [row for row in rows if row["step"] == step]
                for what in ("unsafe", "benign"):
                    count = sum(row[what] for row in own)
                    rates.append(f"{count / sum(row[f'{what}_total'] for row in own):.2f}")
            lines.append(
                f"| {kind} | {seed} | {rounding(bench, plan, data):.3f} | {peak(bench, plan)} | "
                f"{rows[0]['cpu_seconds']} | {curve(bench.folder / 'runs' / f'{kind}-{seed}')} | "
                + " | ".join(rates) + " |"
            )  # fmt: skip
    print("\n".join(lines))


if __name__ == "__main__":
    main()
