"""Describes a probe's plan in words, and writes it as a file that runs the probe again."""

from __future__ import annotations

import json

from ..plan.attack import ORIGINAL, Attack, FineTuneAttack, LoraAttack, MergeAttack
from ..plan.concept import shown_names
from ..plan.file import to_json
from ..plan.fine_tune import RETAIN
from ..plan.measurement import PromptSet, ScorerConfig
from ..plan.probe import ProbeCheckpoint, ProbeJob
from ..probe.results import ProbeResult
from .schema import without_paths
from .words import KINDS

COMMAND = "resalign probe probe.json"
_NAMES = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}


def attack_words(attack: Attack) -> str:
    """Describe an attack in one sentence, without its name."""
    if isinstance(attack, MergeAttack):
        other = "the original" if attack.other == ORIGINAL else attack.other
        part = "the denoiser" if attack.part == "denoiser" else "denoiser and text encoders"
        if attack.other == ORIGINAL and attack.weight > 1:
            return f"{part}: what was changed is subtracted, {attack.weight:g} times the way back"
        return f"{part}: mixed with {attack.weight:g} of {other}"
    if isinstance(attack, LoraAttack):
        return " + ".join(f"{lora.path} at {lora.strength:g}" for lora in attack.loras)
    return _training(attack)


def _training(attack: FineTuneAttack) -> str:
    if attack.method == "full":
        how = "all weights of the denoiser"
    else:
        how = f"{_NAMES[attack.method]} of rank {attack.rank} on {', '.join(attack.targets)}"
    data = "the retain set" if attack.data == RETAIN else attack.data
    if attack.concept_share >= 1:
        data = "the concept alone"
    elif attack.concept_share > 0:
        data += f" with {100 * attack.concept_share:g} % of the concept"
    batch = f"{attack.batch} × {attack.accumulate}" if attack.accumulate > 1 else f"{attack.batch}"
    said = [
        f"{how}; data: {data}",
        f"{attack.steps} steps of batch {batch}",
        f"{attack.optimiser} at {attack.learning_rate:g} ({attack.schedule})",
    ]
    if attack.trained_on:
        other = "the original" if attack.trained_on == ORIGINAL else attack.trained_on
        said.append(f"trained on {other}, then put on the model")
    if attack.held_out:
        said.append(f"{100 * attack.held_out:g} % of the data held out")
    if attack.text_encoder:
        said.append(f"text encoder at {attack.text_encoder_learning_rate:g}")
    if attack.prior_data:
        said.append("prior preservation")
    if attack.caption_dropout:
        said.append(f"captions dropped {100 * attack.caption_dropout:g} %")
    if attack.flip:
        said.append("flips")
    if attack.ema:
        said.append(f"EMA {attack.ema:g}")
    return "; ".join(said)


def plan_rows(result: ProbeResult) -> list[tuple[str, str]]:
    """Return everything but the attacks, as rows of a table."""
    plan = result.plan
    drawn = plan.generation
    rows = [("Concepts", ", ".join(shown_names(plan.concepts)))]
    rows += [("Scorer" if i == 0 else "Also scored by", _scorer(s))
             for i, s in enumerate(plan.scorers)]  # fmt: skip
    rows += [(f"Prompts: {KINDS[part.kind]}", _prompts(part, result)) for part in plan.prompts]
    rows += [
        ("Seeds of fine-tuning", ", ".join(map(str, plan.seeds))),
        (
            "Pictures drawn with",
            f"{drawn.steps} steps, guidance {drawn.guidance:g}, first seed {drawn.seed}, "
            + (f"{drawn.resolution} px" if drawn.resolution else "the checkpoint's own size"),
        ),
        ("Versions", ", ".join(f"{k} {v}" for k, v in sorted(result.versions.items()))),
    ]
    return rows


def job_json(result: ProbeResult) -> str:
    """Make the plan file of a job; it names files without folders."""
    result = without_paths(result)
    checkpoints = tuple(
        ProbeCheckpoint(
            name=model.name,
            path=model.source or f"{model.name}.safetensors",
            role=model.role,  # type: ignore[arg-type]
        )
        for model in result.models
    )
    job = ProbeJob(checkpoints=checkpoints, output="probe", plan=result.plan)
    return json.dumps(to_json(job), ensure_ascii=False, indent=2)


def _scorer(scorer: ScorerConfig) -> str:
    said = [scorer.name]
    if scorer.threshold is not None:
        said.append(f"threshold {scorer.threshold:g}")
    if scorer.labels:
        said.append("labels " + ", ".join(scorer.labels))
    return "; ".join([*said, *([f"weights {scorer.weights}"] if scorer.weights else [])])


def _prompts(part: PromptSet, result: ProbeResult) -> str:
    texts = result.prompts.get(part.kind, ())
    where = part.file or ("written in the plan" if part.prompts else "shipped")
    return f"{where}: {len(set(texts))} prompts, {len(texts)} images"
