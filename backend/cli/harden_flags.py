"""Builds a job from a plan file, from flags, or from a plan file with some fields replaced."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..families import Family
from ..jobs.family_defaults import drawn_as, family_at
from ..plan.concept import Concept
from ..plan.file import load_job
from ..plan.hardening import HardeningPlan
from ..plan.images import ImageSet
from ..plan.job import Job
from ..plan.presets import DEFAULT_PRESET, preset_plan
from .arguments import parts_of


def job_of(args: argparse.Namespace) -> Job:
    """Return the job that the arguments of `check` and `harden` describe, with absolute paths."""
    if args.plan:
        if args.preset:
            raise ConfigError("--preset starts a new plan: leave it out when you give a plan file")
        job = load_job(args.plan)
    else:
        missing = [f"--{name}" for name in ("checkpoint", "concept", "output")
                   if not getattr(args, name)]  # fmt: skip
        if missing:
            raise ConfigError(f"give a plan file, or {' and '.join(missing)} too")
        plan = preset_plan(args.preset or DEFAULT_PRESET, concepts_of(args.concept))
        plan = drawn_as(_family(args), plan)
        job = Job(checkpoint=args.checkpoint, output=args.output, plan=plan)
    places = {
        name: str(Path(value).absolute())
        for name in ("checkpoint", "output", "lora", "run_folder", "text_encoder", "vae")
        if (value := getattr(args, name) or getattr(job, name))
    }
    return replace(
        job, plan=_changed(job.plan, args), device=args.device or job.device,
        prediction=args.prediction or job.prediction, **places,
    )  # fmt: skip


def _family(args: argparse.Namespace) -> Family | None:
    parts = parts_of(args)
    return family_at(args.checkpoint, prediction=args.prediction or "", parts=parts)


def concepts_of(names: Iterable[str]) -> tuple[Concept, ...]:
    """Load concepts: each name is that of a shipped concept, or a file of the user's."""
    from ..data.concept import load_concepts, load_preset

    found: list[Concept] = []
    for name in names:
        if Path(name).suffix.lower() in (".toml", ".json"):
            found += load_concepts(Path(name))
        else:
            found.append(load_preset(name).concept())
    return tuple(found)


def _changed(plan: HardeningPlan, args: argparse.Namespace) -> HardeningPlan:
    changes: dict[str, Any] = {}
    for name in ("seed", "resolution", "precision", "gradient_checkpointing"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    if args.plan and args.concept:
        changes["concepts"] = concepts_of(args.concept)
    if args.forget:
        changes["forget_set"] = ImageSet(folder=str(Path(args.forget).absolute()))
    if args.retain:
        changes["retain_set"] = ImageSet(folder=str(Path(args.retain).absolute()))
    if args.steps is not None:
        changes["outer_steps"] = args.steps
        changes["warm_up_steps"] = max(round(plan.warm_up_steps * args.steps / plan.outer_steps), 0)
    return replace(plan, **changes)
