"""Cost of a probe, as a multiple of the bare training steps, images and scorings in it.

    python benchmarks/probe.py [--repeats 3]

A bare training step is forward, backward and AdamW of the same network with the same LoRA on a
batch of the same size; a bare image is the sampler's forward passes and one decoding, without
anything around them; a bare scoring is the forward passes of the denoising score and of the drift,
and the judge's. All are timed in this process, in turn with the probe itself (CPU seconds,
medians), on the embedded demo: small networks make overhead look large. The goal is at most 1.10.

Memory is that of processes of their own, above what is resident once the model is loaded: of one
that trains one bare LoRA and draws one batch, of a probe with one attack on one model, and of a
probe with four attacks on two models, which should cost hardly more.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from process_memory import forget_peak, resident

from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.data.latents import encode_image_set
from resalign.backend.demo.art import BENIGN, UNSAFE, evaluation_prompts
from resalign.backend.demo.judge import Judge
from resalign.backend.demo.plans import CHECKPOINT, WEAPON, write_data
from resalign.backend.model.encode import decode_latents, encode_prompts
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.measurement import GenerationConfig, PromptSet, ScorerConfig
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.probe.probe import run_probe
from resalign.backend.probe.subjects import LoadedSubject

STEPS, BATCH, RANK = 100, 16, 8
SAMPLER, GUIDANCE, DRAWN = 12, 4.0, 48


def probe_plan(data: dict[str, Path], attacks: int = 1) -> ProbePlan:
    unsafe = tuple(prompt for prompt, _ in evaluation_prompts(UNSAFE, 12, 1))
    benign = tuple(prompt for prompt, _ in evaluation_prompts(BENIGN, 3, 1))
    return ProbePlan(
        concepts=(Concept(WEAPON, images=ImageSet(folder=str(data["attack_concept"]))),),
        retain_set=ImageSet(folder=str(data["retain"])),
        fine_tunes=tuple(
            FineTuneAttack(
                name=f"LoRA {number}", data=str(data["attack"]), concept_share=0.2, steps=STEPS,
                batch=BATCH, rank=RANK, learning_rate=5e-3, gradient_norm=0.0,
            )
            for number in range(attacks)
        ),
        prompts=(
            PromptSet(kind="unsafe", prompts=unsafe), PromptSet(kind="retain", prompts=benign)
        ),
        scorers=(ScorerConfig(name="demo"), ScorerConfig(name="denoising")),
        generation=GenerationConfig(steps=SAMPLER, guidance=GUIDANCE, batch=DRAWN),
        pictures=12,
    )  # fmt: skip


class Bare:
    """The passes of a probe, without any other work."""

    def __init__(self, model, data: dict[str, Path], cache: Path) -> None:
        self.model = model
        images = encode_image_set(model, ImageSet(folder=str(data["attack"])), cache=cache)
        self.latents, self.told = images.draw(torch.Generator().manual_seed(0), BATCH)
        self.prompts = encode_prompts(model, ["a picture of a key"] * DRAWN)
        self.empty = encode_prompts(model, [""])

    def training(self, steps: int) -> float:
        with AdaptedDenoiser(self.model, AdapterConfig(rank=RANK)) as denoiser:
            leaves = list(denoiser.theta.values())
            optimiser = torch.optim.AdamW(leaves, lr=1e-4, foreach=True)
            noise, times = torch.randn_like(self.latents), torch.full((BATCH,), 500)
            started = time.process_time()
            for _ in range(steps):
                predicted = self.model.denoise(self.latents, times, self.told)
                (predicted - noise).square().mean().backward()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            return (time.process_time() - started) / steps

    @torch.no_grad()
    def image(self) -> float:
        both = torch.cat([self.empty["context"].expand(DRAWN, -1, -1), self.prompts["context"]])
        told = type(self.prompts)(both)
        side = self.model.resolution // 8
        latents = torch.randn(DRAWN, 4, side, side)
        scheduler = self.model.process.sampler(SAMPLER)
        started = time.process_time()
        for timestep in scheduler.timesteps:
            times = timestep.expand(2 * DRAWN)
            without, given = self.model.denoise(torch.cat([latents, latents]), times, told).chunk(2)
            predicted = without + GUIDANCE * (given - without)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        decode_latents(self.model, latents)
        return (time.process_time() - started) / DRAWN

    @torch.no_grad()
    def scoring(self, judge: Judge) -> float:
        passes = (64 * 4 + 32) // BATCH
        pictures = torch.zeros(2 * DRAWN, 3, 64, 64)
        times = torch.full((BATCH,), 500)
        started = time.process_time()
        for _ in range(passes):
            self.model.denoise(self.latents, times, self.told)
        judge.classify(pictures)
        return time.process_time() - started


def cost(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        data, model = write_data(base / "data"), load_checkpoint(CHECKPOINT)
        plan, bare = probe_plan(data), Bare(model, data, base / "cache")
        run_probe([LoadedSubject("original", model)], plan, folder=base / "warm")
        rows, judge = [], Judge.load()
        for repeat in range(repeats):
            step, image, scoring = bare.training(10), bare.image(), bare.scoring(judge)
            kept = base / f"run{repeat}"
            (kept).mkdir()
            (base / "warm" / "cache").rename(kept / "cache")  # encoding is done once, not measured
            started = time.process_time()
            result = run_probe([LoadedSubject("original", model)], plan, folder=kept)
            spent = time.process_time() - started
            (kept / "cache").rename(base / "warm" / "cache")
            images = sum(
                part.images for evaluation in result.evaluations for part in evaluation.sets[:2]
            )
            needed = STEPS * step + images * image + len(result.evaluations) * scoring
            rows.append((step, image, scoring, spent, spent / needed, result))
        step, image, scoring, spent, ratio = (
            statistics.median(row[i] for row in rows) for i in range(5)
        )
        seconds: dict[str, float] = {}
        for evaluation in rows[-1][5].evaluations:
            for name, value in evaluation.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + value
        print(
            f"bare training step {step * 1000:.0f} ms, bare image {image * 1000:.1f} ms, "
            f"bare scoring of an evaluation {scoring:.2f} s (CPU)"
        )
        print(f"probe with {STEPS} steps and {images} images: {spent:.1f} s; ratio {ratio:.3f}")
        print("ratios of the repeats: " + ", ".join(f"{row[4]:.3f}" for row in rows))
        print("wall seconds: " + ", ".join(f"{name} {s:.1f}" for name, s in seconds.items()))


def memory() -> None:
    for name in ("bare", "one attack", "four attacks, two models"):
        done = subprocess.run(
            [sys.executable, __file__, "--part", name], capture_output=True, text=True, check=True
        )
        print(f"memory above the loaded model: {name}: {done.stdout.splitlines()[-1]}")


def part(name: str) -> None:
    """Run one process of the memory measurement; print MiB (Linux only)."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        data, model = write_data(base / "data"), load_checkpoint(CHECKPOINT)
        bare = Bare(model, data, base / "cache")
        subjects = [LoadedSubject("original", model)]
        plan = probe_plan(data)
        if name.startswith("four"):
            subjects, plan = [*subjects, LoadedSubject("again", model)], probe_plan(data, attacks=4)
        before = resident("VmRSS")
        forget_peak()
        if name == "bare":
            bare.training(3)
            bare.image()
        else:
            run_probe(subjects, plan, folder=base / "probe")
        print(f"{resident('VmHWM') - before:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part:
        part(arguments.part)
        return
    cost(arguments.repeats)
    memory()


if __name__ == "__main__":
    main()
