"""The loss that drives a concept out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .checks import check_fields
from .document import document
from .field import Choices, Help, Range

HarmLoss = Annotated[
    Literal["ascent", "redirect"],
    Choices(
        ascent="raise the denoising error on images of the concept, up to a cap",
        redirect="predict for the concept what the frozen model predicts for its anchor prompt",
    ),
]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class HarmConfig:
    """The form of a concept's loss.

    `ascent` is −mean(cap · tanh(m / cap)) of the per-sample denoising error m; without the
    saturation utility collapses. `redirect` is the distance to the frozen model's prediction for
    the anchor prompt, pushed away from the concept (ESD: Gandikota et al., arXiv:2303.07345).
    """

    loss: Annotated[HarmLoss, Help("How the concept is unlearned.", label="Harm loss")] = "ascent"
    cap: Annotated[
        float,
        Range(0, 1e6, above=True, usual="5 to 10 times the model's usual error"),
        Help("Denoising error at which the ascent levels off.", label="Cap of the ascent"),
    ] = 0.5
    guidance: Annotated[
        float,
        Range(0, 100),
        Help("How far redirect goes beyond the anchor, away from the concept."),
    ] = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "harm")
