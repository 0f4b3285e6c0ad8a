"""The setting `quantization`: its values, and which plans cannot have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from ..errors import ConfigError
from .bounds import choice
from .methods import FACTS

Quantization = Literal["none", "int8", "nf4"]
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "int8", "nf4")


def check_quantization(plan: Any) -> None:
    """Raise for a value that there is not, and for a plan that needs the weights themselves."""
    choice("plan", "quantization", plan.quantization, QUANTIZATIONS)
    if plan.quantization == "none":
        return
    reason = next(_needs_weights(plan), None)
    if reason is not None:
        raise ConfigError(
            f"plan: quantization is {plan.quantization!r}, but {reason}; set quantization to "
            "'none', or leave that out"
        )


def can_quantize(plan: Any) -> bool:
    """Whether the plan could have another quantization than none."""
    return next(_needs_weights(plan), None) is None


def _needs_weights(plan: Any) -> Iterator[str]:
    if plan.simulate == "full":
        yield "simulate = 'full' trains all weights of the denoiser"
    for user in plan.fine_tunes:
        if plan.simulate == "adapter" and user.method == "full":
            yield f"the simulated user {user.name} (method 'full') trains all weights"
    for method in (plan.method, *(stage.method for stage in plan.before)):
        if FACTS[method].needs_weights:
            yield f"method {method!r} is computed from the weights"
