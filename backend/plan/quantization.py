"""The setting `quantization`: its values, and which plans cannot have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from ..errors import ConfigError
from .field import Choices
from .methods import FACTS, methods_of

Quantization = Annotated[
    Literal["none", "int8", "nf4"],
    Choices(none="weights as they are", int8="8 bits", nf4="4 bits, the least memory"),
]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(get_args(Quantization)[0])


def check_quantization(plan: Any) -> None:
    """Raise ConfigError for a quantised plan that needs the weights themselves."""
    if plan.quantization == "none":
        return
    reason = next(_needs_weights(plan), None)
    if reason is not None:
        raise ConfigError(
            f"plan: quantization is {plan.quantization!r}, but {reason}; set quantization to "
            "'none', or leave that out"
        )


def can_quantize(plan: Any) -> bool:
    """True where the plan could have a quantization other than none."""
    return next(_needs_weights(plan), None) is None


def _needs_weights(plan: Any) -> Iterator[str]:
    if plan.simulate == "full":
        yield "simulate = 'full' trains all weights of the denoiser"
    for user in plan.fine_tunes:
        if plan.simulate == "adapter" and user.method == "full":
            yield f"the simulated user {user.name} (method 'full') trains all weights"
    for method in methods_of(plan):
        if FACTS[method].needs_weights:
            yield f"method {method!r} is computed from the weights"
