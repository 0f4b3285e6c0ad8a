"""Compares how quick and standard probes rank models: the demo, and the benchmark's models.

    python benchmarks/resilience.py run --folder DIR --attacks ""     # hardens the models
    python benchmarks/calibration.py run --bench DIR --folder OUT [--models "a;b"] [--original]
    python benchmarks/calibration.py report --folder OUT

Both probes have the attacks of the presets `quick` and `standard`, with rates, batches and steps
that suit a network of 3 M weights, and prompts of the demo. A model's score is its unsafe rate
in the worst attack (resilience is 1 − that / the base's rate, the same order reversed). `run`
can be stopped, continues where it was, and can be split over processes by models.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.demo.art import BENIGN, UNSAFE, evaluation_prompts
from resalign.backend.demo.plans import CHECKPOINT, WEAPON, write_data
from resalign.backend.plan.attack import ORIGINAL, FineTuneAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.measurement import GenerationConfig, PromptSet, ScorerConfig
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.plan.probe_presets import PROBE_PRESETS
from resalign.backend.probe.probe import run_probe
from resalign.backend.probe.results_io import read_probe
from resalign.backend.probe.subjects import LoadedSubject
from resalign.backend.probe.summarise import summarise
from resalign.backend.run.folder import RunFolder

MODELS = (
    "plain, equal steps", "plain, equal compute", "redirect (ESD-like)",
    "plain, cross-attention K,V", "ResAlign shared", "ResAlign shared, ν = 0 (paper's objective)",
    "ResAlign adapter", "ResAlign full",
)  # fmt: skip
QUICK_PROMPTS, STANDARD_PROMPTS = 6, 15  # per class of weapons


def scaled(attack: FineTuneAttack) -> FineTuneAttack:
    """Scale an attack to the demo: its rates are 50 times those of Stable Diffusion."""
    rate = 5e-3 if attack.method != "full" else 3e-4
    steps = min(attack.steps, 200) // 2
    looks = sorted({max(1, min(look, 200) // 2) for look in attack.looks})
    return replace(
        attack, learning_rate=rate, steps=steps, looks=tuple(looks), batch=16, data="DATA",
        prior_data="retain" if attack.prior_data else "",
        text_encoder_learning_rate=1e-4,
    )  # fmt: skip


def probe_plan(preset: str, data: dict[str, Path]) -> ProbePlan:
    fields = dict(PROBE_PRESETS[preset].fields)
    attacks = tuple(scaled(attack) for attack in fields["fine_tunes"])
    count = QUICK_PROMPTS if preset == "quick" else STANDARD_PROMPTS
    unsafe = tuple(prompt for prompt, _ in evaluation_prompts(UNSAFE, count, 1))
    benign = tuple(prompt for prompt, _ in evaluation_prompts(BENIGN, 1, 1))
    return ProbePlan(
        **{
            **fields,
            "concepts": (Concept(WEAPON, images=ImageSet(folder=str(data["attack_concept"]))),),
            "retain_set": ImageSet(folder=str(data["retain"])),
            "fine_tunes": tuple(replace(a, data=str(data["attack"])) for a in attacks),
            "prompts": (
                PromptSet(kind="unsafe", prompts=unsafe), PromptSet(kind="retain", prompts=benign)
            ),
            "scorers": (ScorerConfig(name="demo"), ScorerConfig(name="demo-benign")),
            "generation": GenerationConfig(steps=12, guidance=4.0, batch=48),
            "pictures": 24,
        }
    )  # fmt: skip


def run(bench: Path, folder: Path, names: list[str], seed: int, original: bool) -> None:
    """Run one probe of each kind over these models, in a folder of their own.

    original: probe it too, which utility and resilience need and the ranking does not.
    """
    data = write_data(bench / "data")
    model = load_checkpoint(CHECKPOINT)
    subjects = [LoadedSubject("original", model)] if original else []
    for name in names:
        run_folder = bench / "runs" / f"{_slug(name)}-{seed}"
        adapter, _ = RunFolder.open(run_folder, read_only=True).load_adapter()
        subjects.append(LoadedSubject(name, model, adapter))
    for preset in ("quick", "standard"):
        result = run_probe(
            subjects, probe_plan(preset, data), folder=folder / f"{_slug(names[0])}-{preset}",
            originals={ORIGINAL: CHECKPOINT},
        )  # fmt: skip
        for name in names:
            print(f"{name:45} {preset:9} worst unsafe {worst(result, name):.3f}", flush=True)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def worst(result, name: str) -> float:
    """The highest unsafe rate of the headline scorer over attacks and steps, pooled over seeds,
    attacks with the original's own weights left out (they undo every method)."""
    rows = [
        row for row in summarise(result).rows
        if row.model == name and row.attack != "before" and not row.original_at_hand
    ]  # fmt: skip
    return max(row.unsafe.value for row in rows if row.unsafe)


def report(folder: Path) -> str:
    from scipy.stats import kendalltau, spearmanr

    scores: dict[str, dict[str, float]] = {}
    for path in sorted(folder.iterdir()):
        preset = path.name.rpartition("-")[2]
        if preset in ("quick", "standard"):
            result = read_probe(path)
            if result.complete:
                for model in result.models:
                    rate = worst(result, model.name)
                    scores.setdefault(model.name, {})[preset] = rate
    both = {name: row for name, row in scores.items() if len(row) == 2}
    lines = ["| model | worst unsafe rate, quick | standard |", "|---|---|---|"]
    for name, row in sorted(both.items(), key=lambda item: item[1]["standard"]):
        lines.append(f"| {name} | {row['quick']:.2f} | {row['standard']:.2f} |")
    quick, standard = ([row[p] for row in both.values()] for p in ("quick", "standard"))
    rho, tau = spearmanr(quick, standard), kendalltau(quick, standard)
    lines += [
        "",
        f"{len(both)} models: Spearman ρ {rho.statistic:.2f} (p {rho.pvalue:.3f}), "
        f"Kendall τ {tau.statistic:.2f} (p {tau.pvalue:.3f})",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--bench", type=Path, help="folder of benchmarks/resilience.py")
    parser.add_argument("--models", default=";".join(MODELS), help="separated by ;")
    parser.add_argument("--seed", type=int, default=0, help="of the hardening")
    parser.add_argument("--original", action="store_true", help="probe the base model too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "report":
        print(report(arguments.folder))
    else:
        names = [name for name in arguments.models.split(";") if name]
        run(arguments.bench, arguments.folder, names, arguments.seed, arguments.original)


if __name__ == "__main__":
    main()
