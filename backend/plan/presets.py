"""Plans to start from: `quick`, `balanced`, `paper`, the fast `edit` and `redirect`, and `durable`.

`paper` follows the published code (github.com/AntigoneRandy/ResAlign, head 14775d3) where it is
known: 160 updates at 2e-4, rank 4, J = 3, Richardson with K = 5 and γ = 1, λ = 0.8, μ from 1.6 to
2.0 in the second half, a pool over rates, steps, optimisers and methods. `balanced` regulates how
hard the simulated users try and lets them see some of the concept: what held at matched utility on
the embedded demo (docs/benchmarks.md). Its rates and weights have not been tuned on a full-size
Stable Diffusion. `quick` is `balanced` made small, to see that everything works. `durable` changes
all weights: it erases the concepts' directions and distils the model back; `durable-max` does so
for longer, and averages the weights. Their learning rate is of the size that is
usual for all weights of Stable Diffusion; they have been tried on the demo alone, at a higher one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from .adapter import AdapterConfig
from .concept import Concept
from .durable import DistilConfig, EraseConfig, VariedConfig
from .fine_tune import FineTuneConfig, fine_tune_grid
from .hardening import HardeningPlan
from .ramp import Ramp
from .regulator import RegulatorConfig
from .solver import SolverConfig
from .stages import Stage

DEFAULT_PRESET = "durable"  # the longest-lasting removal for its time (docs/durable.md)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPreset:
    """summary: one line. fields: of HardeningPlan, where they differ from its defaults.
    grids: the pool as arguments of `fine_tune_grid`; single: the rest of the pool.
    """

    summary: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    grids: tuple[Mapping[str, Any], ...] = ()
    single: tuple[FineTuneConfig, ...] = ()

    def pool(self) -> tuple[FineTuneConfig, ...]:
        grids = [config for grid in self.grids for config in fine_tune_grid(**grid)]
        return (*self.single, *grids)


_REGULATED = {
    "method": ("lora",),
    "optimiser": ("adamw",),
    "learning_rate": (1e-4, 3e-4),
    "steps": (10,),
    "batch": 4,
    "concept_share": 0.2,
}

# A ratio this low takes much out that is not the concepts' own, unless varied images hold it.
_DENSE = {
    "save_every": 50, "varied": VariedConfig(images=1000), "erase": EraseConfig(ratio=2.0),
    "distil": DistilConfig(towards="anchor"),
}  # fmt: skip

# Some four images of each thing, which it takes to keep one (docs/durable.md); in half of the
# steps, and one pass a step.
_WIDE = VariedConfig(images=7000, wide=True, sampling_steps=10, guidance=1.0)

PLAN_PRESETS: dict[str, PlanPreset] = {
    "balanced": PlanPreset(
        summary="regulated simulated users, first order: ResAlign with a small adapter",
        grids=(_REGULATED,),
    ),
    "quick": PlanPreset(
        summary="the same in a fraction of the steps, to see that everything works",
        fields={
            "outer_steps": 20,
            "warm_up_steps": 8,
            "forget_batch": 2,
            "retain_batch": 2,
            "regulator": RegulatorConfig(min_steps=2, max_steps=8),
        },
        grids=({**_REGULATED, "learning_rate": (1e-4,), "steps": (4,), "batch": 2},),
    ),
    "edit": PlanPreset(
        summary="a closed-form edit of the cross-attention: seconds, no training, no resilience",
        fields={"method": "closed_form", "adapter": AdapterConfig(rank=16)},
    ),
    "redirect": PlanPreset(
        summary="training towards the anchors (ESD-like): minutes, no resilience",
        fields={"method": "redirect", "retain_weight": 4.0},
    ),
    "durable": PlanPreset(
        summary="erase the concepts' directions from all weights, then distil: lasts longest for "
        "its time",
        fields={
            **_DENSE,
            "method": "distil",
            "before": (Stage(method="erase"),),
            "outer_steps": 300,
            "warm_up_steps": 0,
        },
    ),
    "durable-max": PlanPreset(
        summary="durable with convolutions erased by patches, twice the steps and more varied "
        "images; hours",
        fields={
            **_DENSE,
            "varied": _WIDE,
            "erase": EraseConfig(ratio=2.0, convolutions="patches", patch_width=12_000),
            "distil": DistilConfig(towards="anchor", ema=0.98),
            "method": "distil",
            "before": (Stage(method="erase"),),
            "outer_steps": 600,
            "warm_up_steps": 0,
        },
    ),
    "paper": PlanPreset(
        summary="the published method: Richardson, no regulator, no warm-up, benign users",
        fields={
            "outer_steps": 160,
            "warm_up_steps": 0,
            "learning_rate": 2e-4,
            "configurations_per_step": 3,
            "simulate": "shared",
            "solver": SolverConfig(method="richardson", iterations=5, gamma=1.0, products="exact"),
            "regulator": RegulatorConfig(enabled=False),
            "resilience_weight": 0.8,
            "retain_weight": Ramp(start=1.6, end=2.0, shape="sigmoid", begin=0.5, until=1.0),
        },
        grids=(
            {
                "method": ("lora", "full"),
                "optimiser": ("sgd", "adamw"),
                "learning_rate": (1e-4, 1e-5, 1e-6),
                "steps": (5, 10, 20, 30),
                "batch": 1,
            },
        ),
        single=(FineTuneConfig(name="dreambooth", method="dreambooth", steps=10),),
    ),
}


def plan_preset(name: str) -> PlanPreset:
    if name not in PLAN_PRESETS:
        raise ConfigError(
            f"no plan preset is called {name!r}; choose from {', '.join(PLAN_PRESETS)}"
        )
    return PLAN_PRESETS[name]


def preset_plan(name: str, concepts: Iterable[Concept], **changes: Any) -> HardeningPlan:
    """The plan of a preset for these concepts, with some fields of the plan changed."""
    preset = plan_preset(name)
    values: dict[str, Any] = {"fine_tunes": preset.pool(), **preset.fields, **changes}
    return HardeningPlan(concepts=tuple(concepts), **values)
