"""The socket types of our nodes, and the values they carry. Does not import torch.

The classes are frozen values; `io` types name the sockets. Inputs are declared through `advanced`
and `preset_input`, which fall back to plain inputs if ComfyUI is too old for the newer kind.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

if TYPE_CHECKING:
    from ..backend.adapter.dense import AnyAdapter
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
    """The pool of simulated users, and how many of them an outer step draws (J)."""

    fine_tunes: tuple[FineTuneConfig, ...]
    configurations_per_step: int = 1


@dataclass(frozen=True, slots=True)
class SettingsValue:
    """A plan preset of the backend and the fields of HardeningPlan that differ from it."""

    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HardenedRun:
    """The result of Harden Model.

    folder: its run folder. source: the checkpoint file of the MODEL; None if unknown.
    patched: the MODEL carried LoRAs or merges, which a rewrite of `source` would lack.
    key_map: module names of diffusers to those of ComfyUI's denoiser.
    weights: fingerprints of the MODEL and the CLIP that were hardened; runs of earlier versions
    have only `samples`, some values of some modules. prediction: what the MODEL predicts, which
    decides for a file that says otherwise or contradicts itself; empty in runs of earlier versions.
    """

    plan: HardeningPlan
    adapter: AnyAdapter
    records: tuple[StepRecord, ...]
    folder: Path
    family: str
    key_map: Mapping[str, str]
    source: Path | None = None
    patched: bool = False
    warnings: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, list[float]] = field(default_factory=dict)
    prediction: str = ""


@dataclass(frozen=True, slots=True)
class ReportValue:
    """A finished probe: its folder, below the ResAlign folder of the output directory."""

    folder: Path
    result: ProbeResult


def found_by(*words: str) -> dict[str, Any]:
    """Return further words that find a node in the search, where ComfyUI supports them (0.12.1)."""
    if "search_aliases" not in inspect.signature(io.Schema.__init__).parameters:
        return {}
    return {"search_aliases": ["resalign", *words]}


def advanced(kind: Any, name: str, **options: Any) -> Any:
    """Declare an optional input, hidden by default where ComfyUI supports it (0.12.1)."""
    options.setdefault("optional", True)
    if "advanced" in inspect.signature(kind.Input.__init__).parameters:
        options["advanced"] = True
    return kind.Input(name, **options)


def preset_input(
    name: str, choices: Mapping[str, list[Any]], **options: Any
) -> tuple[list[Any], list[Any]]:
    """Declare a choice that shows its own inputs: DynamicCombo, or Combo with all optional.

    choices: each choice and the inputs it shows. In `execute` read the value with `chosen`.
    Returns the choice, and inputs to append after the node's others: workflows store values by
    position, so inputs that are always visible must come last for the others not to move.
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
    """Return the choice of a `preset_input` and the values of its inputs, with either kind."""
    if isinstance(value, Mapping):
        return str(value[name]), {key: item for key, item in value.items() if key != name}
    return str(value), dict(others)
