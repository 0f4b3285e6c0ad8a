"""The share of the way to an oracle, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WayShare:
    """How far a model is on the way from `reference` to `oracle` after one attack.

    value: 1: as the oracle; 0: as the reference; below 0: worse. None where the two differ too
    little. low, high: its 95 % interval, None where too many resamples have no such difference.
    """

    model: str
    reference: str
    oracle: str
    attack: str
    step: int
    value: float | None
    low: float | None
    high: float | None
    reference_rate: float
    rate: float
    oracle_rate: float
