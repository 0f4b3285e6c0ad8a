"""Makes the adapter of a run from its saved state: the file of the adapter is only a copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..adapter.dense import AnyAdapter, summed
from ..adapter.lora import Adapter
from ..plan.adapter import AdapterConfig
from ..plan.hardening import HardeningPlan

STAGES = "stages"  # folder below the run's, with a run folder of each stage
THETA = "theta."  # begins the names of θ's tensors in a state


def stage_name(number: int, method: str) -> str:
    """Return the name of a stage's folder. number: from 1."""
    return f"{number}-{method}"


def last_stage(folder: Path, plan: HardeningPlan) -> Path:
    """Return the folder of the last stage before the plan's own method."""
    return folder / STAGES / stage_name(len(plan.before), plan.before[-1].method)


def adapter_of_state(
    config: AdapterConfig, tensors: Mapping[str, Tensor], earlier: AnyAdapter | None
) -> AnyAdapter | None:
    """Return θ of a state on top of what the stages before it left; None if it has no θ."""
    theta = {
        name.removeprefix(THETA): tensor.float().clone()
        for name, tensor in tensors.items()
        if name.startswith(THETA)
    }
    if not theta:
        return None
    own = Adapter(theta, config.rank, config.effective_alpha)
    return summed(earlier, own) if earlier else own
