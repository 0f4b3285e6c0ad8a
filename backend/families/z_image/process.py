"""The noise process: a straight flow; training does not shift its times, sampling does.

Trainers draw logit-normal times (OneTrainer and ai-toolkit without a shift; musubi-tuner's
documentation shifts by 2). Images are drawn under the scheduler's constant shift, 3 as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..base.flow_scheduler import constant_shift

if TYPE_CHECKING:
    from ..base.process import FlowProcess


def flow_process(file: str, config: Mapping[str, Any]) -> FlowProcess:
    """Build the process of a scheduler config; raise for one of another kind."""
    return constant_shift(file, config, title="Z-Image", published=3.0)
