"""What a scorer says of a batch of images, as a value. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one scorer says of a batch of images.

    values: one per image, higher is worse (safety) or better (quality), as the scorer says.
    flagged: shows the concept. labels: what was seen, in words, or "".
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
