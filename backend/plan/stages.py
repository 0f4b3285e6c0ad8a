"""The methods that harden, stages that run before one, and the settings of the fast methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .checks import check_fields
from .document import document
from .field import Choices, Help, Range

HardeningMethod = Annotated[
    Literal["resalign", "redirect", "project", "closed_form", "erase", "distil"],
    Choices(
        resalign="train against simulated users, so that the concept stays removed",
        redirect="train towards the anchors (ESD-like); fast, promises no resilience",
        project="unlearn outside of what retain samples use (PGU-like); fast, no resilience",
        closed_form="edit the cross-attention in one step (UCE-like); seconds, no resilience",
        erase="take the concepts' own directions out of all layers in one step, before distil",
        distil="train all weights towards the original on what must stay; after erase it lasts",
    ),
]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class EditConfig:
    """The closed-form edit of the keys and values of cross-attention (method `closed_form`)."""

    retain_weight: Annotated[
        float,
        Range(0, 1e6),
        Help("ρ: weight of the tokens of what must stay, relative to those of the concepts."),
    ] = 1.0
    ridge: Annotated[
        float,
        Range(0, 1e6, above=True),
        Help("ε: damping, relative to the mean square of the tokens; more changes less."),
    ] = 1e-3
    strength: Annotated[
        float, Range(0, 10, above=True), Help("Strength of the whole edit; 1 is as solved.")
    ] = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "edit")


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionConfig:
    """The subspace that projected updates stay out of (method `project`)."""

    energy: Annotated[
        float,
        Range(0, 1),
        Help(
            "Share of what retain samples use in each layer (the square of its inputs) that is "
            "left alone; more leaves the adapter less room."
        ),
    ] = 0.95
    samples: Annotated[
        int, Range(1, 1_000_000), Help("Retain samples from which the subspace is measured.")
    ] = 64

    def __post_init__(self) -> None:
        check_fields(self, "projection")


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A method that runs before the plan's own, which continues from its result.

    Everything that is not here is as in the plan.
    """

    method: Annotated[HardeningMethod, Help("Method of this stage.")]
    steps: Annotated[
        int, Range(1, 1_000_000), Help("Updates of this stage; a closed form takes one.")
    ] = 60
    rank: Annotated[
        int,
        Range(0, 1024),
        Help("Rank of what this stage adds to the adapter; 0 is the adapter's rank."),
    ] = 0

    def __post_init__(self) -> None:
        check_fields(self, "stage")
