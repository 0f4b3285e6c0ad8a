"""The noise process: a straight flow, with times and sampling shifted by the size of the image.

In training, logit-normal times are shifted by exp μ, where μ rises linearly from 0.5 at 256
positions of a latent to 1.15 at 4096 (1024 pixels): that of the native size is used here. Sampling
shifts by another μ, fitted to the number of positions and of steps. Sources: the trainers' flux2
shift (musubi-tuner); `compute_empirical_mu` of diffusers' Flux2KleinPipeline for its constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ..base.flow_scheduler import check_scheduler
from .config import SIDE, STRIDE

if TYPE_CHECKING:
    from ..base.process import FlowProcess

_NATIVE = (SIDE // STRIDE) ** 2  # positions
_FEW, _MANY = 10, 200  # steps to which the constants belong
_SLOPES = {_FEW: (8.73809524e-05, 1.89833333), _MANY: (0.00016927, 0.45666666)}
_LARGE = 4300  # positions above which the number of steps plays no part


def flow_process(file: str, config: Mapping[str, Any]) -> FlowProcess:
    """Build the process of a scheduler config; raise for one of another kind."""
    from ..base.process import FlowProcess  # brings torch along

    check_scheduler(file, config, "FLUX.2 klein")
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) * (_NATIVE - few) / (many - few)
    if not 0 <= mu < 10:
        raise CheckpointError(f"{file}: its scheduler's shifts ({low}, {high}) cannot be right")
    return FlowProcess(shift=math.exp(mu), sampling_mu=sampling_mu)


def sampling_mu(positions: int, steps: int) -> float:
    """Return μ of the shift exp μ in sampling; for 0 positions, that of the native size.

    Linear in the number of positions for 10 and for 200 steps, and linear in the steps between.
    """
    positions = positions or _NATIVE
    few, many = (slope * positions + offset for slope, offset in _SLOPES.values())
    if positions > _LARGE:
        return many
    return few + (many - few) * (steps - _FEW) / (_MANY - _FEW)
