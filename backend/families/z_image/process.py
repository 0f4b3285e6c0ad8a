"""The noise process: a straight flow; training does not shift its times, sampling does.

Trainers draw logit-normal times (OneTrainer and ai-toolkit without a shift; musubi-tuner's
documentation shifts by 2). Images are drawn under the scheduler's constant shift, 3 as published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from ...errors import CheckpointError
from ..base.process import FlowProcess

_SHIFT = 3.0


def flow_process(file: str, config: Mapping[str, Any]) -> FlowProcess:
    """Build the process of a scheduler config; raise for one of another kind."""
    kind = config.get("_class_name", "FlowMatchEulerDiscreteScheduler")
    if kind != "FlowMatchEulerDiscreteScheduler":
        raise CheckpointError(
            f"{file}: its scheduler is {kind!r}; Z-Image has FlowMatchEulerDiscreteScheduler"
        )
    shift = config.get("shift", _SHIFT)
    if config.get("use_dynamic_shifting") or not 1 <= shift < 100:
        raise CheckpointError(
            f"{file}: its scheduler shifts by {shift} (or by the size of an image), which is not "
            "that of Z-Image: a constant, 3 as published"
        )
    return FlowProcess(sampling_mu=partial(_constant, math.log(shift)))


def _constant(mu: float, positions: int, steps: int) -> float:
    return mu
