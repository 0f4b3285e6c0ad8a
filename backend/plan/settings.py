"""Plans from what a front end offers: choices and single values.

The ComfyUI nodes and the A1111 tab offer the same settings; this is what they mean. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import ConfigError
from .concept import Concept
from .field import Field, field_of
from .fine_tune import RETAIN, FineTuneConfig, fine_tune_grid
from .hardening import HardeningPlan
from .methods import FACTS
from .presets import plan_preset, preset_plan

OWN = "preset"  # a choice that leaves what the preset says
# A user's choice: the preset, and how many times its outer steps. The first is the default;
# `durations` has their order by time, and their names.
PRESETS = {
    "durable": ("durable", 1),
    "balanced": ("balanced", 1),
    "fast": ("quick", 1),
    "thorough": ("balanced", 2),
    "paper": ("paper", 1),
    "redirect": ("redirect", 1),
    "edit": ("edit", 1),
    "durable-max": ("durable-max", 1),
    "custom": ("balanced", 1),
}
FAST_PRESET = PRESETS["fast"][0]  # shows that everything works, and draws few pictures
# The inputs of a front end, and the fields of the plan that they set. At 0 or `preset` an input
# keeps what the preset says.
INPUTS = {
    "seed": "seed",
    "outer_steps": "outer_steps",
    "rank": "adapter.rank",
    "resolution": "resolution",
    "simulate": "simulate",
    "solver": "solver.method",
    "products": "solver.products",
    "precision": "precision",
    "resilience_weight": "resilience_weight",
    "retain_weight": "retain_weight",
    "gamma": "solver.gamma",
    "learning_rate": "learning_rate",
    "gradient_checkpointing": "gradient_checkpointing",
    "micro_batch": "micro_batch",
    "varied_images": "varied.images",
    "erase_ratio": "erase.ratio",
    "distil_batch": "distil.batch",
    "teacher": "distil.teacher",
    "teacher_waits": "distil.teacher_waits",
    "optimiser_waits": "distil.optimiser_waits",
}
# What an input sets instead where the preset's own method trains all weights.
_DENSE_INPUTS = {"learning_rate": "distil.learning_rate"}
# What only the choice `custom` shows; an input that is not there keeps the preset's.
CUSTOM_INPUTS = {
    "forget_batch": "forget_batch",
    "retain_batch": "retain_batch",
    "harm_loss": "harm.loss",
    "harm_cap": "harm.cap",
    "regulator": "regulator.enabled",
    "proximal": "proximal",
}
# The simulated users of the choice `custom`: their inputs, and what they start with.
CUSTOM_USERS: dict[str, Any] = {
    "lora": True, "full": False, "dreambooth": False, "learning_rates": "1e-4, 1e-5",
    "steps": "5, 20", "adamw": True, "sgd": False, "ranks": "4", "batch": 1,
    "concept_share": 0.2, "configurations_per_step": 1,
}  # fmt: skip
_USER_FIELDS = {"learning_rates": "learning_rate", "ranks": "rank"}
METHODS = tuple(field_of(FineTuneConfig, "method").choices)
OPTIMISERS = tuple(field_of(FineTuneConfig, "optimiser").choices)


def input_field(name: str) -> Field:
    """The field of the plan that an input of a front end sets."""
    return field_of(HardeningPlan, {**INPUTS, **CUSTOM_INPUTS}[name])


def user_field(name: str) -> Field:
    """The field that an input for the simulated users sets, for one user or for the plan."""
    if name == "configurations_per_step":
        return field_of(HardeningPlan, name)
    return field_of(FineTuneConfig, _USER_FIELDS.get(name, name))


def setting_changes(choice: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the preset of `plan_presets` and the fields that differ from it.

    values: by the names of a front end's inputs; 0 and "preset" keep what the preset says.
    """
    name, factor = PRESETS[choice]
    own = plan_preset(name).fields
    given = {key: value for key, value in values.items() if value not in (None, 0, "", OWN)}
    dense = FACTS[own.get("method", "resalign")].dense
    changes = _changes(given, INPUTS | _DENSE_INPUTS if dense else INPUTS, own)
    if choice == "custom":
        changes |= _changes(values, CUSTOM_INPUTS, own)
    # A plan of the preset alone, to know its steps.
    base = preset_plan(name, [Concept("any", ("any",))])
    steps = changes.pop("outer_steps", base.outer_steps * factor)
    if steps != base.outer_steps:
        changes["outer_steps"] = steps
        changes["warm_up_steps"] = round(base.warm_up_steps * steps / base.outer_steps)
    return name, changes


def _changes(
    values: Mapping[str, Any], paths: Mapping[str, str], own: Mapping[str, Any]
) -> dict[str, Any]:
    """The plan's fields as the inputs change them; parts of it start from the preset's own."""
    changes: dict[str, Any] = {}
    for name, path in paths.items():
        if name not in values:
            continue
        part, _, field = path.rpartition(".")
        if part:
            base = changes.get(part) or own.get(part) or field_of(HardeningPlan, part).default
            changes[part] = replace(base, **{field: values[name]})
        else:
            changes[path] = values[name]
    return changes


def fine_tuning_pool(
    choice: str, values: Mapping[str, Any], folder: str = ""
) -> tuple[tuple[FineTuneConfig, ...], int]:
    """The pool of simulated users of a choice and J, the users of one outer step.

    folder: of captioned images that they train on; empty: the plan's retain set.
    """
    if choice == "none":
        return (), 1
    if choice == "custom":
        pool = _custom_pool(values)
        per_step = int({**CUSTOM_USERS, **values}["configurations_per_step"])
    else:
        preset = plan_preset(choice)
        pool, per_step = preset.pool(), int(preset.fields.get("configurations_per_step", 1))
        if not pool:  # a fast method simulates nobody
            return (), 1
    if per_step > len(pool):
        raise ConfigError(
            f"configurations_per_step is {per_step}, but the settings describe {len(pool)} "
            f"simulated user(s): lower it to {len(pool)}, or add learning rates, steps or methods"
        )
    if folder:
        pool = tuple(
            replace(one, data=folder, name=f"images/{one.name.removeprefix(f'{RETAIN}/')}")
            for one in pool
        )
    return pool, per_step


def _custom_pool(values: Mapping[str, Any]) -> tuple[FineTuneConfig, ...]:
    values = {**CUSTOM_USERS, **values}
    methods = [name for name in METHODS if values.get(name)]
    optimisers = [name for name in OPTIMISERS if values.get(name)]
    for what, found in ((f"method: {_or(METHODS)}", methods),
                        (f"optimiser: {_or(OPTIMISERS)}", optimisers)):  # fmt: skip
        if not found:
            raise ConfigError(f"fine-tuning settings: switch on at least one {what}")
    ranks = numbers("ranks", values["ranks"], int)
    pool: list[FineTuneConfig] = []
    for rank in ranks:
        grid = fine_tune_grid(
            method=methods,  # type: ignore[arg-type]
            optimiser=optimisers,  # type: ignore[arg-type]
            learning_rate=numbers("learning_rates", values["learning_rates"], float),
            steps=numbers("steps", values["steps"], int),
            rank=rank,
            batch=int(values["batch"]),
            concept_share=float(values["concept_share"]),
        )
        pool += grid if len(ranks) == 1 else [
            replace(one, name=f"{one.name}/rank {rank}") for one in grid
        ]  # fmt: skip
    return tuple(pool)


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def numbers(name: str, text: str, kind: type) -> list[Any]:
    """Read numbers of a kind that are separated by commas, as in `1e-4, 1e-5`, each once."""
    found = []
    for part in text.replace(";", ",").split(","):
        if not part.strip():
            continue
        try:
            found.append(kind(part.strip()))
        except ValueError:
            example = "5, 20" if kind is int else "1e-4, 1e-5"
            raise ConfigError(
                f"{name}: {part.strip()!r} is not a {'whole ' if kind is int else ''}number; "
                f"separate them with commas, as in {example}"
            ) from None
    if not found:
        raise ConfigError(f"{name} is empty: give at least one number")
    return list(dict.fromkeys(found))
