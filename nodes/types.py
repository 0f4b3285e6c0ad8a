"""The wires between our nodes, and what runs along them. Loads no torch.

The classes are frozen values; `io` types name the sockets. Inputs are declared through `advanced`
and `preset_input`, which fall back to plain inputs where ComfyUI is too old for the newer kind.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

if TYPE_CHECKING:
    from ..backend.adapter.lora import Adapter
    from ..backend.plan.fine_tune import FineTuneConfig
    from ..backend.plan.hardening import HardeningPlan
    from ..backend.probe.results import ProbeResult
    from ..backend.run.records import StepRecord

CATEGORY = "ResAlign"

Concepts = io.Custom("RESALIGN_CONCEPTS")  # tuple[Concept, ...]
Images = io.Custom("RESALIGN_IMAGES")  # backend ImageSet
FineTuning = io.Custom("RESALIGN_FINE_TUNING")  # FineTuningValue
Settings = io.Custom("RESALIGN_SETTINGS")  # SettingsValue
Run = io.Custom("RESALIGN_RUN")  # HardenedRun
Report = io.Custom("RESALIGN_REPORT")  # ReportValue


@dataclass(frozen=True, slots=True)
class FineTuningValue:
    """The pool of simulated users and how many of them an outer step draws (J)."""

    fine_tunes: tuple[FineTuneConfig, ...]
    configurations_per_step: int = 1


@dataclass(frozen=True, slots=True)
class SettingsValue:
    """A plan preset of the backend and the fields of HardeningPlan that differ from it."""

    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HardenedRun:
    """What Harden Model ends with.

    folder: its run folder. source: the checkpoint file the MODEL came from; None where unknown.
    patched: the MODEL carried LoRAs or merges, which a rewrite of `source` would not have.
    key_map: diffusers module name to the module's name in ComfyUI's U-Net.
    """

    plan: HardeningPlan
    adapter: Adapter
    records: tuple[StepRecord, ...]
    folder: Path
    family: str
    key_map: Mapping[str, str]
    source: Path | None = None
    patched: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportValue:
    """A finished probe: its folder, below the ResAlign folder of the output directory."""

    folder: Path
    result: ProbeResult


def advanced(kind: Any, name: str, **options: Any) -> Any:
    """An optional input that is hidden until asked for, where ComfyUI can (0.12.1 and later)."""
    options.setdefault("optional", True)
    if "advanced" in inspect.signature(kind.Input.__init__).parameters:
        options["advanced"] = True
    return kind.Input(name, **options)


def preset_input(
    name: str, choices: Mapping[str, list[Any]], **options: Any
) -> tuple[list[Any], list[Any]]:
    """A choice that shows the inputs belonging to it: DynamicCombo, or Combo with all optional.

    choices: each choice and the inputs it shows. In `execute` read the value with `chosen`.
    Returns the choice, and what goes behind the node's other inputs: workflows keep values by
    place, so where the inputs of the choices are always there they come last, and no other moves.
    """
    if hasattr(io, "DynamicCombo"):
        kinds = io.DynamicCombo
        shown = [kinds.Option(key, inputs) for key, inputs in choices.items()]
        return [kinds.Input(name, options=shown, **options)], []
    options.setdefault("default", next(iter(choices)))
    extra = {item.id: item for inputs in choices.values() for item in inputs}
    for item in extra.values():
        item.optional = True
    return [io.Combo.Input(name, options=list(choices), **options)], [*extra.values()]


def chosen(name: str, value: Any, others: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The choice of a `preset_input` and the values of the inputs it shows, on either host."""
    if isinstance(value, Mapping):
        return str(value[name]), {key: item for key, item in value.items() if key != name}
    return str(value), dict(others)
