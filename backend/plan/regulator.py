"""The regulator: how long simulated users train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .checks import check_fields
from .document import document
from .field import Help, Range


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class RegulatorConfig:
    """Adapts the length of the simulated runs so that they stay worth hardening against.

    q = L_harm(θ*) / L_harm(θ) is what a simulated run leaves of the harm loss: 1 means that it
    brought nothing back, 0 that it brought everything back. Above `high` the inner loop grows by
    `factor`; below `low` it shrinks.
    """

    enabled: Annotated[
        bool,
        Help(
            "Adapt the length of the simulated runs so that the share of the harm loss that they "
            "leave stays between low and high.",
            label="Regulator",
        ),
    ] = True
    low: Annotated[
        float,
        Range(0, 1),
        Help("Below this share the runs are too strong to learn from, and become shorter."),
    ] = 0.6
    high: Annotated[
        float,
        Range("low", 1),
        Help("Above this share the runs bring nothing back, and become longer."),
    ] = 0.8
    factor: Annotated[
        float, Range(1, 10, above=True), Help("Factor by which a run grows or shrinks at a time.")
    ] = 1.1
    min_steps: Annotated[int, Range(1, 100_000), Help("Steps of the shortest run.")] = 4
    max_steps: Annotated[int, Range("min_steps", 100_000), Help("Steps of the longest run.")] = 40
    patience: Annotated[
        int,
        Range(1, 100_000),
        Help("Runs of full length in a row that bring nothing back before there is a warning."),
    ] = 10

    def __post_init__(self) -> None:
        check_fields(self, "regulator")
