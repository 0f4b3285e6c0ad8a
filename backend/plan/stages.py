"""Which method hardens, and what may go before it; the settings of the fast ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .bounds import choice, within

HardeningMethod = Literal["resalign", "redirect", "project", "closed_form"]
METHODS: tuple[HardeningMethod, ...] = ("resalign", "redirect", "project", "closed_form")


@dataclass(frozen=True, slots=True, kw_only=True)
class EditConfig:
    """The closed-form edit of the cross-attention's K and V.

    retain_weight: ρ, of the tokens of what must stay relative to the concepts'. ridge: ε relative
    to the mean square of the tokens; larger changes less. strength: of the whole edit, 1 as solved.
    """

    retain_weight: float = 1.0
    ridge: float = 1e-3
    strength: float = 1.0

    def __post_init__(self) -> None:
        within("edit", "retain_weight", self.retain_weight, 0, 1e6)
        within("edit", "ridge", self.ridge, 0, 1e6, above=True)
        within("edit", "strength", self.strength, 0, 10, above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionConfig:
    """What the projected updates are kept out of.

    energy: share of the square of each layer's inputs, on retain samples, that the subspace
    holds; more leaves the adapter less room. samples: how many are looked at.
    """

    energy: float = 0.95
    samples: int = 64

    def __post_init__(self) -> None:
        within("projection", "energy", self.energy, 0, 1)
        within("projection", "samples", self.samples, 1, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A method that runs before the plan's own, which goes on from what it left.

    Everything that is not here is as in the plan. steps: updates (a closed form is one).
    rank: of what this stage adds; 0 means the plan's.
    """

    method: HardeningMethod
    steps: int = 60
    rank: int = 0

    def __post_init__(self) -> None:
        choice("stage", "method", self.method, METHODS)
        within("stage", "steps", self.steps, 1, 1_000_000)
        within("stage", "rank", self.rank, 0, 1024)
