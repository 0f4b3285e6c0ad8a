"""Train the demo's transformer test-bed from nothing, on one CPU core; see README.md.

    python tools/train_demo/dit_train.py --out DIR --minutes 25

A stage whose result exists is skipped, and the denoiser continues from its last state. The sprites
and the judge must exist: `train.py` makes them. Stage `save` replaces the shipped file with
`--replace-shipped` only.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from dit_shared import DIT, FILE
from shipped import add_flag, refuse_to_replace
from world import art

STAGES = ("text", "vae", "denoiser", "save", "evaluate")


def main() -> None:
    """Run the stages in order."""
    parser = argparse.ArgumentParser(description="Train the demo's transformer test-bed.")
    parser.add_argument("--out", type=Path, required=True, help="work folder")
    parser.add_argument("--vae-minutes", type=float, default=10)
    parser.add_argument("--minutes", type=float, default=25, help="of the denoiser")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    add_flag(parser)
    arguments = parser.parse_args()
    if "save" in arguments.stages:
        refuse_to_replace(parser, arguments, art.ASSETS / DIT / FILE)
    torch.set_num_threads(1)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    def due(stage: str, result: Path) -> bool:
        return stage in arguments.stages and not result.exists()

    if due("text", out / "text"):
        import dit_text

        dit_text.train(out / "text", out / "tokenizer")
    if due("vae", out / "vae"):
        import dit_autoencoder

        dit_autoencoder.train(arguments.vae_minutes, out / "vae")
    if due("denoiser", out / "denoiser.safetensors"):
        import dit_denoiser

        dit_denoiser.train(arguments.minutes, out)
    if "save" in arguments.stages:
        import dit_file

        print(dit_file.ship(out, art.ASSETS), "bytes")
    if "evaluate" in arguments.stages:
        import dit_evaluate

        dit_evaluate.evaluate(art.ASSETS / DIT / FILE, out / "samples.png")


if __name__ == "__main__":
    main()
