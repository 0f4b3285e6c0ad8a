"""The memory that a plan needs, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..plan.hardening import HardeningPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes on the device at the peak of a run, by part, and the plan that they belong to.

    plan: the plan in question, with `changes` where a budget required them. asked: `parts` without
    the changes. fits: None without a budget. words: the result in sentences for the user.
    """

    plan: HardeningPlan
    weights: int
    state: int
    activations: int
    encoding: int  # the whole peak while encoding, which may be the larger one
    margin: int
    changes: Mapping[str, Any]
    budget: int | None = None
    words: tuple[str, ...] = ()
    asked: Mapping[str, int] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, `total` last; `encoding` is not a summand, but another peak."""
        names = ("weights", "state", "activations", "encoding", "margin", "total")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return the prediction for programs, without the plan."""
        return {
            "asked": dict(self.asked), "parts": self.parts, "changes": dict(self.changes),
            "budget": self.budget, "fits": self.fits, "words": list(self.words),
        }  # fmt: skip

    @property
    def peak(self) -> int:
        """Bytes at the larger of the two peaks, without the margin."""
        return max(self.weights + self.state + self.activations, self.encoding)

    @property
    def total(self) -> int:
        return self.peak + self.margin

    @property
    def fits(self) -> bool | None:
        return None if self.budget is None else self.total <= self.budget
