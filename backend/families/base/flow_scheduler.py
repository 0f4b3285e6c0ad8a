"""Schedulers of flow models: checked, and turned into the noise process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError

if TYPE_CHECKING:
    from .process import FlowProcess

_CLASS = "FlowMatchEulerDiscreteScheduler"


def check_scheduler(file: str, config: Mapping[str, Any], title: str) -> None:
    """Raise for a scheduler that is not one of a flow. title: of the family, for readers."""
    kind = config.get("_class_name", _CLASS)
    if kind != _CLASS:
        raise CheckpointError(f"{file}: its scheduler is {kind!r}; {title} has {_CLASS}")


def constant_shift(
    file: str, config: Mapping[str, Any], *, title: str, published: float
) -> FlowProcess:
    """Build the process of a family whose training does not shift its times, and whose sampling
    shifts them by a constant. published: that of its models, where a config states none."""
    from .process import FlowProcess  # brings torch along

    check_scheduler(file, config, title)
    shift = config.get("shift", published)
    if config.get("use_dynamic_shifting") or not 1 <= shift < 100:
        raise CheckpointError(
            f"{file}: its scheduler shifts by {shift} (or by the size of an image), which is not "
            f"that of {title}: a constant, {published:g} as published"
        )
    return FlowProcess(sampling_mu=partial(_constant, math.log(shift)))


def _constant(mu: float, positions: int, steps: int) -> float:
    return mu
