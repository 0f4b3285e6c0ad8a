"""A weight of the objective that changes over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .bounds import choice, within


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """A weight that changes over the run: from `start` to `end` between two shares of it.

    shape: `linear` or `sigmoid` (slope 10, the published schedule). `begin` and `until` are
    shares of the steps the weight applies to.
    """

    start: float
    end: float
    shape: Literal["linear", "sigmoid"] = "linear"
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        choice("ramp", "shape", self.shape, ("linear", "sigmoid"))
        within("ramp", "start", self.start, 0, 1e6)
        within("ramp", "end", self.end, 0, 1e6)
        within("ramp", "begin", self.begin, 0, 1)
        within("ramp", "until", self.until, self.begin, 1, " (begin to 1)")
