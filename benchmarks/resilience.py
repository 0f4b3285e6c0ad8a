"""Unsafe rates of the demo model before and after real fine-tuning, against the baselines.

Every method unlearns the same concept from the same checkpoint on the same images; every attack
uses pictures, seeds and settings that hardening never saw. Rates are over 96 prompts that ask for
a weapon (benign accuracy: 48 that ask for something else), no two alike, the same prompts and
seeds for all.

    python benchmarks/resilience.py run --folder DIR [--methods a,b] [--seeds 0,1,2] [--attacks x]
    python benchmarks/resilience.py run --folder DIR --oracles DIR2
    python benchmarks/resilience.py run --folder DIR --family dit [...]
    python benchmarks/resilience.py report --folder DIR
    python benchmarks/resilience.py figure --output FILE.png

`run` appends one JSON line per measurement to DIR/results.jsonl and skips what is there already,
so it can be stopped, resumed, and split over processes by methods or seeds. With `--oracles` it
measures models that never saw the concept, as tools/train_demo/oracle.py writes them. `report`
prints the tables of docs/benchmarks.md, and durability wherever the oracle and plain unlearning
were measured too. `figure` draws durability against the time of hardening from results/*.jsonl.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from resilience_bench import Bench, read
from resilience_methods import ATTACKS, NEIGHBOURS, ORACLE, PLAIN, methods
from resilience_tables import class_table, durability_table, figure, report

from resalign.backend.demo.beds import BEDS, UNET, find_bed

__all__ = ["ATTACKS", "NEIGHBOURS", "ORACLE", "PLAIN", "Bench", "methods", "read", "report"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("run", "report", "figure"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path, help="where `figure` writes its PNG")
    parser.add_argument("--methods", default="", help="separated by ; all by default")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--attack-seeds", default="0,1")
    parser.add_argument("--attacks", default="|".join(ATTACKS), help="separated by |")
    parser.add_argument("--until", type=int, default=1000, help="steps after which attacks stop")
    parser.add_argument("--oracles", type=Path, help="folder of oracle-SEED.safetensors")
    parser.add_argument("--family", choices=BEDS, default=UNET.family, help="embedded checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "figure":
        if not arguments.output:
            parser.error("figure needs --output")
        files = sorted((Path(__file__).parent / "results").glob("*.jsonl"))
        rows = [row for path in files for row in read(path) if "attack_seed" in row]
        print(figure(rows, arguments.output))
        return
    if not arguments.folder:
        parser.error("run and report need --folder")
    if arguments.command == "report":
        rows = read(arguments.folder / "results.jsonl")
        print(report(rows))
        if any(row["method"] == ORACLE for row in rows):
            print(f"\nDurability\n\n{durability_table(rows)}")
        print(f"\nHarmless things right, by kind\n\n{class_table(rows, held_out=False)}")
        if any("held out" in row["method"] for row in rows):
            print(f"\nClasses in no picture of the retain set\n\n{class_table(rows, True)}")
        return
    bench = Bench(
        arguments.folder, arguments.device, bed=find_bed(arguments.family), until=arguments.until
    )  # fmt: skip
    attacks = [attack for attack in arguments.attacks.split("|") if attack]
    attack_seeds = [int(part) for part in arguments.attack_seeds.split(",")]
    if arguments.oracles:
        for path in sorted(arguments.oracles.glob("oracle-*.safetensors")):
            seed = int(path.stem.removeprefix("oracle-"))
            bench.measure(ORACLE, seed, bench.oracle(path), {}, attacks, attack_seeds)
        return
    wanted = [part.strip() for part in arguments.methods.split(";") if part.strip()]
    for seed in (int(part) for part in arguments.seeds.split(",")):
        for name, plan in methods(bench.data, seed, bench.bed).items():
            if (not wanted or name in wanted) and (plan is not None or seed == 0):
                adapter, notes = (None, {}) if plan is None else bench.adapter(name, plan)
                bench.measure(name, seed, adapter, notes, attacks, attack_seeds)


if __name__ == "__main__":
    main()
