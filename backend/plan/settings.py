"""What a front end asks for, as choices and single values, put together to a plan.

The ComfyUI nodes and the A1111 tab offer the same settings; this is what they mean. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import ConfigError
from .adapter import AdapterConfig
from .concept import Concept
from .fine_tune import RETAIN, FineTuneConfig, fine_tune_grid
from .harm import HarmConfig
from .presets import plan_preset, preset_plan
from .regulator import RegulatorConfig
from .solver import SolverConfig

OWN = "preset"  # a choice that leaves what the preset says
# A user's choice: the preset, and how many times its outer steps. The first is the default.
PRESETS = {
    "balanced": ("balanced", 1),
    "fast": ("quick", 1),
    "thorough": ("balanced", 2),
    "paper": ("paper", 1),
    "redirect": ("redirect", 1),
    "edit": ("edit", 1),
    "custom": ("balanced", 1),
}
FAST = (  # what front ends say of two of them
    "redirect (training towards the anchors, ESD-like, minutes) and edit (a closed-form edit, "
    "seconds) are fast methods without simulated users: they unlearn, and promise no resilience"
)
_PLAIN = ("simulate", "precision", "learning_rate", "resilience_weight", "retain_weight",
          "seed", "resolution", "micro_batch")  # fmt: skip


def setting_changes(choice: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset of `plan_presets` and the fields that differ from it.

    values: by the names of a front end's inputs; 0 and "preset" keep what the preset says.
    """
    name, factor = PRESETS[choice]
    own = plan_preset(name).fields
    given = {key: value for key, value in values.items() if value not in (None, 0, "", OWN)}
    changes: dict[str, Any] = {key: given[key] for key in _PLAIN if key in given}
    if given.get("gradient_checkpointing"):
        changes["gradient_checkpointing"] = True
    if "rank" in given:
        changes["adapter"] = replace(own.get("adapter", AdapterConfig()), rank=given["rank"])
    solver = {"solver": "method", "products": "products", "gamma": "gamma"}
    solver = {field: given[key] for key, field in solver.items() if key in given}
    if solver:
        changes["solver"] = replace(own.get("solver", SolverConfig()), **solver)
    if choice == "custom":
        changes |= _custom(values, own)
    # A plan of the preset alone, to know its steps.
    base = preset_plan(name, [Concept("any", ("any",))])
    steps = given.get("outer_steps", base.outer_steps * factor)
    if steps != base.outer_steps:
        changes["outer_steps"] = steps
        changes["warm_up_steps"] = round(base.warm_up_steps * steps / base.outer_steps)
    return name, changes


def _custom(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What only the custom choice shows; an input that is not there keeps the preset's."""
    changes = {key: values[key] for key in ("forget_batch", "retain_batch") if key in values}
    harm = {key: values[f"harm_{key}"] for key in ("loss", "cap") if f"harm_{key}" in values}
    if harm:
        changes["harm"] = replace(own.get("harm", HarmConfig()), **harm)
    if "regulator" in values:
        regulator = own.get("regulator", RegulatorConfig())
        changes["regulator"] = replace(regulator, enabled=bool(values["regulator"]))
    if "proximal" in values:
        changes["proximal"] = bool(values["proximal"])
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
        per_step = int(values.get("configurations_per_step", 1))
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
    texts = {"learning_rates": "1e-4, 1e-5", "steps": "5, 20", "ranks": "4"}
    values = {"lora": True, "adamw": True, **texts, **values}
    methods = [name for name in ("lora", "full", "dreambooth") if values.get(name)]
    optimisers = [name for name in ("adamw", "sgd") if values.get(name)]
    for what, found in (("method: lora, full or dreambooth", methods),
                        ("optimiser: adamw or sgd", optimisers)):  # fmt: skip
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
            batch=int(values.get("batch", 1)),
            concept_share=float(values.get("concept_share", 0.0)),
        )
        pool += grid if len(ranks) == 1 else [
            replace(one, name=f"{one.name}/rank {rank}") for one in grid
        ]  # fmt: skip
    return tuple(pool)


def numbers(name: str, text: str, kind: type) -> list[Any]:
    """`1e-4, 1e-5` as numbers of a kind, each once."""
    found = []
    for part in text.replace(";", ",").split(","):
        if not part.strip():
            continue
        try:
            found.append(kind(part.strip()))
        except ValueError:
            example = "5, 20" if kind is int else "1e-4, 1e-5"
            raise ConfigError(
                f"{name}: {part.strip()!r} is no {'whole ' if kind is int else ''}number; "
                f"separate them with commas, as in {example}"
            ) from None
    if not found:
        raise ConfigError(f"{name} is empty: give at least one number")
    return list(dict.fromkeys(found))
