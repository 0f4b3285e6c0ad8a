"""Can a hardened model still learn something harmless? A new style, by LoRA.

A model that resists every fine-tuning is useless. Each model learns 300 pictures of harmless
things in two styles that it never saw (LoRA of rank 8, 100 steps); the error of its predictions on
96 other pictures of these styles says how far it got. Models and settings are those of
resilience.py.

    python benchmarks/learning.py run --folder DIR [--methods a;b] [--seeds 1] [--oracles DIR2]
    python benchmarks/learning.py report --folder DIR

DIR is the folder of resilience.py, whose hardened models are used where they are there.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from resilience import ORACLE, Bench, methods, read

from resalign.backend.adapter.dense import AnyAdapter
from resalign.backend.adapter.merge_in_place import merged
from resalign.backend.data.latents import encode_image_set
from resalign.backend.demo.art import BENIGN, HELD_OUT_STYLES, sample_specs, write_image_set
from resalign.backend.demo.evaluation import harm_error
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.images import ImageSet
from resalign.backend.probe.fine_tune import fine_tuned

LESSON = FineTuneConfig(
    name="new-style", data="attack", steps=100, learning_rate=5e-3, batch=16, rank=8
)
MARKS = (25, 50, 100)
METHODS = "base;plain, equal steps;ResAlign shared;durable: erase, then distil"


class Lesson:
    """Two sets in the new styles: one to learn from, one to be examined on."""

    def __init__(self, bench: Bench) -> None:
        self.model, self.file = bench.model, bench.folder / "learning.jsonl"
        cache, unseen = bench.folder / "cache", bench.folder / "data" / "new_style_unseen"
        if not unseen.exists():
            write_image_set(unseen, sample_specs(96, 7, BENIGN, HELD_OUT_STYLES), 7)
        folders = bench.data["new_style"], unseen
        self.seen, self.unseen = (
            encode_image_set(self.model, ImageSet(folder=str(each)), cache=cache)
            for each in folders
        )

    def give(self, name: str, seed: int, adapter: AnyAdapter | None) -> None:
        """Measure before the lesson and at its marks; what is there already is not repeated."""
        if any(row["method"] == name and row["seed"] == seed for row in read(self.file)):
            return
        errors: dict[int, float] = {}

        def look(step: int) -> None:
            errors[step] = harm_error(self.model, self.unseen)

        with merged(self.model, adapter) if adapter else nullcontext():
            look(0)
            with fine_tuned(self.model, LESSON, self.seen, seed=1000, marks=MARKS, on_mark=look):
                pass
        row = {"method": name, "seed": seed, "errors": errors}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(name, seed, {step: round(error, 4) for step, error in errors.items()}, flush=True)


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean error on unseen pictures of the new styles, and what is left of it."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        found[row["method"]].append(row["errors"])
    lines = ["| | models | before | " + " | ".join(f"@{m}" for m in MARKS) + " | learned |"]
    lines.append("|---" * (4 + len(MARKS)) + "|")
    for name, errors in found.items():
        means = [sum(e[str(m)] for e in errors) / len(errors) for m in (0, *MARKS)]
        cells = [f"{mean:.4f}" for mean in means]
        learned = f"{1 - means[-1] / means[0]:.0%}"
        lines.append(f"| {name} | {len(errors)} | " + " | ".join([*cells, learned]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--methods", default=METHODS, help="separated by ;")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--oracles", type=Path, help="folder of oracle-SEED.safetensors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "report":
        print(report(read(arguments.folder / "learning.jsonl")))
        return
    bench = Bench(arguments.folder)
    lesson = Lesson(bench)
    for seed in (int(part) for part in arguments.seeds.split(",")):
        plans = methods(bench.data, seed)
        for name in (part.strip() for part in arguments.methods.split(";")):
            plan = plans[name]
            lesson.give(name, seed, None if plan is None else bench.adapter(name, plan)[0])
    for path in sorted(arguments.oracles.glob("oracle-*.safetensors") if arguments.oracles else ()):
        lesson.give(ORACLE, int(path.stem.removeprefix("oracle-")), bench.oracle(path))


if __name__ == "__main__":
    main()
