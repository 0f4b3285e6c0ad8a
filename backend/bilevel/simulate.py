"""One simulated user: which weights they train, and the result of their run.

`shared` moves θ itself; `adapter` a fresh LoRA on the hardened weights, or all weights for
configurations whose method is `full`; `full` always all weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..adapter.apply import AdaptedDenoiser
from ..plan.fine_tune import FineTuneConfig
from ..plan.hardening import Simulate
from .hypergradient import Hypergradient
from .inner_loop import InnerRun
from .vectors import Parameters, assign, snapshot


@dataclass(frozen=True, slots=True)
class SimulatedUser:
    """A user's run from θ to θ*, and the gradient of the objective there with respect to θ."""

    fine_tune: FineTuneConfig
    run: InnerRun
    result: Hypergradient


@contextmanager
def trained(
    denoiser: AdaptedDenoiser, simulate: Simulate, fine_tune: FineTuneConfig, seed: int
) -> Iterator[Parameters]:
    """Yield the parameters φ that this user trains; restore them bit for bit on leaving.

    seed: of the fresh LoRA, where one is made.
    """
    if simulate == "shared":
        start = snapshot(denoiser.theta)
        try:
            yield denoiser.theta
        finally:
            assign(denoiser.theta, start)
    elif simulate == "full" or fine_tune.method == "full":
        with denoiser.base_weights() as phi:
            yield phi
    else:
        with denoiser.fresh_lora(fine_tune.rank, seed) as phi:
            yield phi
