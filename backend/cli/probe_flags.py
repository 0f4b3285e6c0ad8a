"""Builds a probe's job from a plan file, or from checkpoints and flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..jobs.family_defaults import drawn_as, family_at
from ..plan.attack import ORIGINAL, LoraAttack, LoraFile, MergeAttack
from ..plan.file import load_probe_job
from ..plan.images import ImageSet
from ..plan.measurement import PromptKind, PromptSet, ScorerConfig
from ..plan.probe import BEFORE, ProbeCheckpoint, ProbeJob, ProbePlan
from ..plan.probe_presets import preset_probe
from ..plan.user_attacks import own_name, sibling_attack, style_attack, with_references
from .arguments import parts_of
from .harden_flags import concepts_of

NO_TRAINING = "none"  # --preset: the LoRAs and merges given, and nothing else


def probe_job_of(args: argparse.Namespace) -> ProbeJob:
    """Return the job that the arguments describe."""
    given = list(args.checkpoints)
    if given and Path(given[0]).suffix.lower() in (".toml", ".json"):
        if len(given) > 1:
            raise ConfigError(f"{given[0]} names the checkpoints itself: give no others")
        job = load_probe_job(given[0])
        plan = _changed(job.plan, args)
        output, device = args.output or job.output, args.device or job.device
        checkpoints = with_references(
            _decided(job.checkpoints, args), plain=args.plain, oracle=args.oracle
        )
        checkpoints = with_parts(checkpoints, args)
        return replace(
            job, checkpoints=checkpoints, plan=plan, output=str(Path(output).absolute()),
            device=device,
        )  # fmt: skip
    if not given or not args.concept:
        raise ConfigError(
            "give a plan file (`resalign plan new probe.toml --probe quick` writes one), or the "
            "original, the checkpoints to compare with it, and --concept"
        )
    concepts = concepts_of(args.concept)
    own = args.lora or args.merge or args.sibling
    preset = args.preset or (NO_TRAINING if own else "quick")
    plan = ProbePlan(concepts=concepts) if preset == NO_TRAINING else preset_probe(preset, concepts)
    checkpoints = with_references(
        _decided(_named(given), args), plain=args.plain, oracle=args.oracle
    )
    checkpoints = with_parts(checkpoints, args)
    first = checkpoints[0]
    plan = drawn_as(family_at(first.path, prediction=first.prediction, parts=first.parts), plan)
    return ProbeJob(
        checkpoints=checkpoints,
        output=str(Path(args.output or "probe").absolute()),
        plan=_changed(plan, args), device=args.device or "auto",
    )  # fmt: skip


def _named(paths: Sequence[str]) -> tuple[ProbeCheckpoint, ...]:
    """Name the first `original` and the others after their files."""
    names = ["original"]
    for path in paths[1:]:
        stem = Path(path).name.removesuffix(".safetensors")
        taken = sum(name == stem or name.startswith(f"{stem} (") for name in names)
        names.append(f"{stem} ({taken + 1})" if taken else stem)
    return tuple(
        ProbeCheckpoint(name=name, path=str(Path(path).absolute()))
        for name, path in zip(names, paths, strict=True)
    )


def _decided(
    checkpoints: tuple[ProbeCheckpoint, ...], args: argparse.Namespace
) -> tuple[ProbeCheckpoint, ...]:
    """Apply --prediction to the original; hardened files and runs keep their own decision."""
    if not args.prediction:
        return checkpoints
    return (replace(checkpoints[0], prediction=args.prediction), *checkpoints[1:])


def with_parts(
    checkpoints: tuple[ProbeCheckpoint, ...], args: argparse.Namespace
) -> tuple[ProbeCheckpoint, ...]:
    """Apply --text-encoder and --vae to every checkpoint; a run's folder keeps its own."""
    given = {name: file for name, file in parts_of(args).items() if file}
    return tuple(
        checkpoint if _is_run(checkpoint.path) else replace(checkpoint, **given)
        for checkpoint in checkpoints
    )


def _is_run(path: str) -> bool:
    return (Path(path) / "plan.json").is_file()


def _changed(plan: ProbePlan, args: argparse.Namespace) -> ProbePlan:
    changes: dict[str, Any] = {}
    if args.concept:
        changes["concepts"] = concepts_of(args.concept)
    if args.scorer:
        changes["scorers"] = tuple(_scorer(text) for text in args.scorer)
    changes |= _attacks(plan, args)
    if args.seeds:
        changes["seeds"] = tuple(_whole(part, "--seeds") for part in args.seeds.split(","))
    for name, folder in (("forget_set", args.forget), ("retain_set", args.retain)):
        if folder:
            changes[name] = ImageSet(folder=str(Path(folder).absolute()))
    if args.keep_pictures:
        changes["keep_pictures"] = args.keep_pictures
    kinds: tuple[PromptKind, ...] = ("unsafe", "neighbour", "retain")
    files: dict[PromptKind, str] = {
        kind: file for kind in kinds if (file := getattr(args, f"{kind}_prompts"))
    }
    if files:
        kept = [part for part in plan.prompts if part.kind not in files]
        changes["prompts"] = (
            *(PromptSet(kind=kind, file=str(Path(f).absolute())) for kind, f in files.items()),
            *kept,
        )
    return replace(plan, **changes)


def _attacks(plan: ProbePlan, args: argparse.Namespace) -> dict[str, Any]:
    """Return the plan's attacks on other data, and those that the flags add."""
    changes: dict[str, Any] = {}
    taken = [BEFORE, *(attack.name for attack in plan.attacks)]
    if args.lora:
        changes["loras"] = (*plan.loras, *(own_name(_lora(t), taken) for t in args.lora))
    if args.merge:
        changes["merges"] = (*plan.merges, *(own_name(_merge(t), taken) for t in args.merge))
    trainings = plan.fine_tunes
    if args.data:
        data = str(Path(args.data).absolute())
        trainings = tuple(replace(attack, data=data) for attack in trainings)
        changes["sweeps"] = tuple(replace(sweep, data=data) for sweep in plan.sweeps)
    own = [*map(style_attack, args.style), *map(sibling_attack, args.sibling)]
    trainings = (*trainings, *(own_name(attack, taken) for attack in own))
    return changes | {"fine_tunes": trainings}


def _scorer(text: str) -> ScorerConfig:
    """Parse NAME or NAME=WEIGHTS."""
    name, _, weights = text.partition("=")
    return ScorerConfig(name=name, weights=str(Path(weights).absolute()) if weights else "")


def _lora(text: str) -> LoraAttack:
    """Parse FILE[:STRENGTH], several joined by commas."""
    files = []
    for part in text.split(","):
        path, strength = _split_number(part, 1.0)
        files.append(LoraFile(path=str(Path(path).absolute()), strength=strength))
    return LoraAttack(name=" + ".join(Path(file.path).stem for file in files), loras=tuple(files))


def _merge(text: str) -> MergeAttack:
    """Parse FILE[:WEIGHT] or original[:WEIGHT]."""
    other, weight = _split_number(text, 0.5)
    name = f"{weight:g} of {Path(other).stem}"
    other = other if other == ORIGINAL else str(Path(other).absolute())
    return MergeAttack(name=name, other=other, weight=weight)


def _split_number(text: str, default: float) -> tuple[str, float]:
    """Split `path:0.7`; a path may contain colons itself (C:\\models)."""
    head, colon, tail = text.rpartition(":")
    if colon:
        try:
            return head, float(tail)
        except ValueError:
            pass
    return text, default


def _whole(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is not a whole number") from None
