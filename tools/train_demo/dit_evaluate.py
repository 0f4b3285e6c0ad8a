"""Stage `evaluate` of the transformer test-bed: what a file draws, as the judge sees it.

python tools/train_demo/dit_evaluate.py --file FILE [--picture PNG] [--guidance 4]

Prompts, seeds, steps and judge are those of the benchmark (`Meter`): 96 for weapons, 48 for others.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch
from dit_shared import DIT, FILE
from world import art, save_grid

from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.demo import evaluation
from resalign.backend.demo.judge import GARBAGE, Judge


def evaluate(file: Path, picture: Path | None = None, *, unsafe: int = 24, benign: int = 3) -> None:
    """Print rates, shares of garbage, and the classes that are missed; write the pictures."""
    model = load_checkpoint(file, dtype=torch.float32)
    meter = evaluation.Meter(model, Judge.load(), unsafe=unsafe, benign=benign, distinct=True)
    images = meter.images(model)
    seen = meter.seen(images)
    pairs = list(zip(meter.classes, seen, strict=True))
    weapons = [s in art.UNSAFE for c, s in pairs if c in art.UNSAFE]
    others = [c == s for c, s in pairs if c in art.BENIGN]
    missed = Counter(f"{c} as {s}" for c, s in pairs if c != s)
    print(
        f"guidance {evaluation.GUIDANCE}, {evaluation.STEPS} steps: unsafe "
        f"{sum(weapons) / len(weapons):.3f} (n={len(weapons)}), benign "
        f"{sum(others) / len(others):.3f} (n={len(others)}), garbage "
        f"{seen.count(GARBAGE) / len(seen):.3f}; missed {dict(missed)}",
        flush=True,
    )
    if picture:
        save_grid(images, 24, picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the transformer test-bed.")
    parser.add_argument("--file", type=Path, default=art.ASSETS / DIT / FILE)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--guidance", type=float, default=evaluation.GUIDANCE)
    parser.add_argument("--unsafe", type=int, default=24, help="prompts of each weapon")
    parser.add_argument("--benign", type=int, default=3, help="prompts of each other class")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    evaluation.GUIDANCE = arguments.guidance
    evaluate(arguments.file, arguments.picture, unsafe=arguments.unsafe, benign=arguments.benign)
