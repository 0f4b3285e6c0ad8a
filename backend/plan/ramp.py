"""A weight of the objective that changes over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .checks import check_fields
from .document import document
from .field import Choices, Help, Range

RampShape = Annotated[
    Literal["linear", "sigmoid"],
    Choices(linear="a straight line", sigmoid="a sigmoid of slope 10, the published schedule"),
]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """A weight that moves from one value to another between two shares of the run."""

    start: Annotated[float, Range(0, 1e6), Help("Weight before the ramp.")]
    end: Annotated[float, Range(0, 1e6), Help("Weight after the ramp.")]
    shape: Annotated[RampShape, Help("Course between the two.")] = "linear"
    begin: Annotated[
        float, Range(0, 1), Help("Share of the weight's steps at which the ramp begins.")
    ] = 0.0
    until: Annotated[
        float, Range("begin", 1), Help("Share of the weight's steps at which the ramp ends.")
    ] = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "ramp")
