"""Turns what the page of hardening sends into requests for the worker; checks every value."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ...backend.checkpoint.detect import detect
from ...backend.checkpoint.inspect import inspect
from ...backend.data.concept import load_preset, preset_names, retain_prompts
from ...backend.data.concept_list import NONE, in_a_name, joined, read_concepts, read_strengths
from ...backend.data.small_sets import with_small_sets
from ...backend.errors import ConfigError
from ...backend.families.base.stored import DECISIONS
from ...backend.jobs.family_defaults import drawn_as, family_at
from ...backend.plan import settings as presets
from ...backend.plan.concept import Concept
from ...backend.plan.durations import NAMES
from ...backend.plan.file import to_json
from ...backend.plan.hardening import HardeningPlan
from ...backend.plan.images import ImageSet
from ...backend.plan.presets import DEFAULT_PRESET, PLAN_PRESETS, plan_preset, preset_plan
from ...backend.plan.settings import METHODS, OPTIMISERS, OWN, fine_tuning_pool, setting_changes
from . import host as hosts
from .checking import Values, field_value, flag, number, one_of, some_of, text, whole
from .host import DEMO, Host
from .runs import Probe, Run, named
from .thoroughness import PRESETS, demo_steps

USERS = (OWN, *(name for name in PLAN_PRESETS if plan_preset(name).pool()), "none", "custom")
# Fields of the form that a prediction of memory may change, by what the plan calls them.
FITTING = {
    name: presets.INPUTS[name]
    for name in (
        "micro_batch",
        "gradient_checkpointing",
        "precision",
        "products",
        "teacher",
        "teacher_waits",
        "optimiser_waits",
    )
}
USER_PARTS = {  # an input of `plan.settings`: the form's name of it
    "learning_rates": "learning_rates", "steps": "user_steps", "ranks": "user_ranks",
    "batch": "user_batch", "concept_share": "concept_share",
    "configurations_per_step": "users_per_step",
}  # fmt: skip
AS_IT_SAYS = "as the file says"
BY_ITSELF = "found by itself"  # a text encoder or VAE: in the checkpoint's file, or near it
PARTS = ("text_encoder", "vae")
PREDICTIONS = (AS_IT_SAYS, *DECISIONS)
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,2})?")


def harden_request(values: Values, host: Host, now: datetime | None = None) -> dict[str, Any]:
    """Build the request for a new run, in a folder named after the concepts and the time."""
    checkpoint = hardenable(values, host)
    plan = demo_plan(values) if checkpoint == "demo" else hardening_plan(values, host)
    if checkpoint != "demo":
        plan = drawn_as(family_at(checkpoint), plan)
    return {
        "job": "harden",
        "checkpoint": checkpoint,
        "plan": to_json(plan),
        "run_folder": str(hosts.runs_folder(host) / run_name(values, plan, now)),
        "device": device_of(values, host),
        "prediction": prediction_of(values),
        **parts_of(values, host),
        **preview_of(values),
    }


def hardenable(values: Values, host: Host) -> str:
    """The file to harden; a LoRA, an inpainting model or another kind is refused at the click."""
    checkpoint, decided = checkpoint_of(values, "checkpoint", host), prediction_of(values)
    if checkpoint == "demo":
        if decided:
            raise ConfigError(f"prediction: leave it at {AS_IT_SAYS!r} for the {DEMO}")
        return checkpoint
    path, parts = Path(checkpoint), parts_of(values, host)
    if why := unknown_to(host, path):
        raise ConfigError(f"checkpoint: {why}")
    known = detect(path, prediction=decided, parts=parts) if decided else path
    if problem := inspect(known, parts=parts).problem:
        raise ConfigError(f"checkpoint: {problem}")
    return checkpoint


def unknown_to(host: Host, path: Path) -> str:
    """Say that the host cannot load models of a file's family; empty where it can."""
    if host.every_family:
        return ""
    family = family_at(path)
    if family is None or family.host.webui:
        return ""
    return (
        f"{path.name} is {family.title}, a family that {host.name} does not know: harden it with "
        "`resalign ui`, with `resalign harden`, or in ComfyUI"
    )


def parts_of(values: Values, host: Host) -> dict[str, str]:
    """Return the files of the text encoder and the VAE that were chosen, by component."""
    found = {}
    for name in PARTS:
        if values.get(name) not in (None, "", BY_ITSELF):
            path = hosts.chosen(values[name], host.model_parts(), name.replace("_", " "))
            found[name] = str(path.absolute())
    return found


def prediction_of(values: Values) -> str:
    """Return what the visitor decides that the file predicts; empty follows the file."""
    chosen = one_of(values, "prediction", PREDICTIONS, AS_IT_SAYS)
    return "" if chosen == AS_IT_SAYS else chosen


def check_request(values: Values, host: Host, now: datetime | None = None) -> dict[str, Any]:
    """Build the request for a check of that run, with the memory that it must fit into."""
    run = harden_request(values, host, now)
    names = ("checkpoint", "plan", "run_folder", "device", "prediction")
    kept = {name: run[name] for name in (*names, *PARTS) if name in run}
    return {"job": "check", **kept, "budget": number(values, "memory_budget", 0, 0, 10_000)}


def fitting(changes: Any) -> dict[str, Any]:
    """Return the form's fields for what a check has changed in a plan to make it fit."""
    changes = changes if isinstance(changes, dict) else {}
    given = {field: changes[name] for field, name in FITTING.items() if name in changes}
    return {name: setting(given, name) for name in given}


def resume_request(values: Values, unfinished: list[Run | Probe]) -> dict[str, Any]:
    label = values.get("unfinished")
    found = named(label, unfinished)
    if found is None:
        wrong = f"{str(label)[:80]!r} is not in the list" if label else "none is chosen"
        raise ConfigError(f"unfinished run: {wrong}: refresh the list and choose one")
    return {"job": "resume", "run_folder": str(found.folder), **preview_of(values)}


def checkpoint_of(values: Values, name: str, host: Host) -> str:
    """The file behind a label of the list, or `demo`."""
    if values.get(name) == DEMO:
        return "demo"
    path = hosts.chosen(values.get(name), host.checkpoints(), name.replace("_", " "))
    return str(path.absolute())


def hardening_plan(values: Values, host: Host) -> HardeningPlan:
    preset, changes = setting_changes(
        one_of(values, "preset", PRESETS, DEFAULT_PRESET), settings(values)
    )
    users = one_of(values, "users", USERS, "preset")
    folder = hosts.typed_folder(text(values, "users_folder"), "images to fine-tune on", host)
    if users != "preset" or folder:
        choice = preset if users == "preset" else users
        pool, per_step = fine_tuning_pool(choice, custom_users(values), folder)
        if users != "none" and not plan_preset(preset).pool():
            raise ConfigError(
                f"the preset {preset} simulates nobody who fine-tunes: choose another such as "
                "balanced, or leave the simulated users and their pictures as they were"
            )
        changes |= {"fine_tunes": pool, "configurations_per_step": per_step}
    retain = image_set(
        hosts.typed_folder(text(values, "retain_folder"), "pictures of what must stay", host),
        whole(values, "retain_images", 0, 0, 10_000),
        retain_prompts(),
    )
    if retain:
        changes["retain_set"] = retain
    plan = preset_plan(preset, concepts_of(values, host), **changes)
    return with_small_sets(plan) if preset == presets.FAST_PRESET else plan


def demo_plan(values: Values) -> HardeningPlan:
    """Build the plan for the embedded demo checkpoint: its own settings, and its own concept."""
    from ...backend.demo.plans import durable_plan, prompted_plan

    ticked = some_of(values, "concepts", preset_names())
    if text(values, "own_concepts") or ticked not in ([], ["weapons"]):
        raise ConfigError(
            f"the {DEMO} knows one unsafe concept: tick weapons alone, and leave the prompts empty"
        )
    typed = ("concept_folder", "retain_folder", "users_folder")
    if any(text(values, name) for name in typed):
        raise ConfigError(f"the {DEMO} makes its own pictures: leave the folders empty")
    choice = one_of(values, "preset", PRESETS, DEFAULT_PRESET)
    steps = setting(values, "outer_steps") or demo_steps(choice)
    plan = prompted_plan(seed=setting(values, "seed"), warm_up=steps // 2, steps=steps)
    if choice in ("redirect", "edit"):
        plan = replace(plan, fine_tunes=(), **plan_preset(choice).fields)
    elif choice in ("durable", "durable-max"):
        plan = replace(durable_plan(plan, choice), outer_steps=steps)
    elif one_of(values, "users", USERS, "preset") == "none":
        plan = replace(plan, fine_tunes=(), warm_up_steps=steps)
    return plan


def settings(values: Values) -> dict[str, Any]:
    """Read the settings of the form; 0 and `preset` keep what the preset says."""
    return {name: setting(values, name) for name in presets.INPUTS}


def setting(values: Values, name: str) -> Any:
    return field_value(values, name, presets.input_field(name), keeps_preset=True)


def custom_users(values: Values) -> dict[str, Any]:
    """Read the simulated users of the choice `custom`."""
    start = presets.CUSTOM_USERS
    ticked = [*some_of(values, "methods", METHODS), *some_of(values, "optimisers", OPTIMISERS)]
    found: dict[str, Any] = {name: name in ticked for name in (*METHODS, *OPTIMISERS)}
    for name, part in USER_PARTS.items():
        if isinstance(start[name], str):
            found[name] = text(values, part, start[name])
        else:
            field = presets.user_field(name)
            found[name] = field_value(values, part, field, default=start[name])
    return found


def concepts_of(values: Values, host: Host) -> tuple[Concept, ...]:
    """Return the ticked categories, then those written down, with strengths and pictures."""
    own = text(values, "own_concepts")
    shipped = tuple(
        load_preset(name).concept() for name in some_of(values, "concepts", preset_names())
    )
    found = joined(shipped, read_concepts(NONE, "", own)) if own else shipped
    if not found:
        raise ConfigError("concepts: tick a category, or write what to remove, one prompt a line")
    strengths = _strengths(text(values, "strengths"), [concept.name for concept in found])
    found = tuple(replace(one, weight=strengths.get(one.name, 1.0)) for one in found)
    folder = hosts.typed_folder(text(values, "concept_folder"), "pictures of the concept", host)
    count = whole(values, "concept_images", 0, 0, 10_000)
    if folder and len(found) > 1:
        raise ConfigError(
            "pictures of the concept: a folder belongs to one concept, and there are "
            f"{len(found)}; choose one, or leave the folder empty"
        )
    return tuple(replace(one, images=image_set(folder, count, one.prompts)) for one in found)


def image_set(folder: str, images: int, prompts: tuple[str, ...]) -> ImageSet | None:
    """A folder, or so many pictures to synthesise; None leaves it to the plan."""
    if folder:
        return ImageSet(folder=folder)
    if images:
        return ImageSet(prompts=prompts, images=images)
    return None


def device_of(values: Values, host: Host) -> str:
    device = text(values, "device") or str(host.setting("device") or "auto")
    if not _DEVICE.fullmatch(device):
        raise ConfigError(f"device is {device[:40]!r}; use auto, cpu, cuda, cuda:1 or mps")
    return device


def preview_of(values: Values) -> dict[str, Any]:
    return {
        "preview_every": whole(values, "preview_every", 10, 0, 10_000),
        "preview_prompt": text(values, "preview_prompt")[:1000],
        "show_pictures": flag(values, "show_pictures"),
    }


def run_name(values: Values, plan: HardeningPlan, now: datetime | None = None) -> str:
    """`hate symbols Quick edit 2026-01-31 14.05.09`, or the name that was typed."""
    if text(values, "run_name"):
        return hosts.file_name(text(values, "run_name"), "name of the run")
    preset = NAMES[one_of(values, "preset", PRESETS, DEFAULT_PRESET)].replace(",", "")
    return f"{in_a_name(plan.concepts)} {preset} {(now or datetime.now()):%Y-%m-%d %H.%M.%S}"


def _strengths(line: str, names: list[str]) -> dict[str, float]:
    """`weapons: 2, hate symbols: 0.5`."""
    found = read_strengths(line, names)
    return {name: number({"strength": value}, "strength", 1, 0.01, 100)
            for name, value in found.items()}  # fmt: skip
