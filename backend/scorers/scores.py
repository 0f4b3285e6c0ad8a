"""Scores of a batch of images, as a value. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of a batch of images by one scorer.

    values: one per image; whether higher is worse (safety) or better (quality) depends on the
    scorer. flagged: shows the concept. labels: what was detected, in words, or "".
    """

    scorer: str
    values: tuple[float, ...]
    flagged: tuple[bool, ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("values", "flagged", "labels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.values) != len(self.flagged):
            raise ValueError(f"{self.scorer}: {len(self.values)} values, {len(self.flagged)} flags")
        if self.labels and len(self.labels) != len(self.values):
            raise ValueError(f"{self.scorer}: {len(self.labels)} labels")

    @property
    def hits(self) -> int:
        return sum(self.flagged)
