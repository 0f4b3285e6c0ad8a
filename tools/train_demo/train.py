"""Train the demo's checkpoint from nothing, on one CPU core; see README.md beside this file.

    python tools/train_demo/train.py --icons DIR --out DIR --minutes 48

A stage whose result exists is skipped, and the denoiser continues from its last state, so an
interrupted run is started again with the same command. Stages `save` and `final-judge` replace
shipped files with `--replace-shipped` only.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from shipped import add_flag, refuse_to_replace
from world import REPOSITORY, TOKENIZER, art

STAGES = (
    "sprites", "judge", "text", "vae", "decoder", "unet", "save", "final-judge", "evaluate",
)  # fmt: skip


def main() -> None:
    """Run the stages in order."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("--icons", type=Path, help="node_modules/@iconify-json; for sprites")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="CLIP's vocabulary")
    parser.add_argument("--out", type=Path, required=True, help="work folder")
    parser.add_argument("--minutes", type=float, default=48, help="of the denoiser")
    parser.add_argument("--vae-minutes", type=float, default=9)
    parser.add_argument("--decoder-minutes", type=float, default=8)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    add_flag(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out, tokenizer, assets = arguments.out, arguments.tokenizer, art.ASSETS
    written = {"save": "demo_sd.safetensors", "final-judge": "judge.safetensors"}
    replaced = [assets / file for stage, file in written.items() if stage in arguments.stages]
    refuse_to_replace(parser, arguments, *replaced)
    out.mkdir(parents=True, exist_ok=True)

    def due(stage: str, result: Path) -> bool:
        return stage in arguments.stages and not result.exists()

    if due("sprites", assets / "sprites.png"):
        import icons

        if arguments.icons is None:
            parser.error("--icons is needed to draw the sprites")
        print(icons.write_sheet(arguments.icons, assets, art.CLASSES, art.SIZE), "sprites")
    if due("judge", assets / "judge.safetensors"):
        import judging

        print(judging.train(assets))
    if due("text", out / "text"):
        import text

        text.train(out / "text", tokenizer)
    if due("vae", out / "vae"):
        import autoencoder

        autoencoder.train(arguments.vae_minutes, out / "vae")
    if due("decoder", out / "vae_decoder"):
        import autoencoder

        autoencoder.train_decoder(arguments.decoder_minutes, out / "vae", out / "vae_decoder")
    finished = out / "demo_sd.safetensors"
    if due("unet", finished):
        import denoiser

        denoiser.prepare(out, tokenizer, 16000)
        denoiser.train(arguments.minutes, out, tokenizer)
    if "save" in arguments.stages:
        import single_file

        single_file.export(out, finished)
        shutil.copyfile(finished, assets / "demo_sd.safetensors")
        print(finished.stat().st_size, "bytes")
    if "final-judge" in arguments.stages:  # again, now that the noise of a broken model is known
        import judging
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(out / "vae_decoder").eval()
        print(judging.train(assets, vae=vae))
    if "evaluate" in arguments.stages:
        import evaluate

        picture = REPOSITORY / "docs" / "images" / "demo_samples.png"
        evaluate.evaluate(assets / "demo_sd.safetensors", out, tokenizer, picture)


if __name__ == "__main__":
    main()
