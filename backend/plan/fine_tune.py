"""The pool of simulated users: ways in which people fine-tune a published checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from .checks import check_fields
from .document import document
from .field import NOT_EMPTY, PATH, Choices, Help, Range

RETAIN = "retain"  # in place of a folder: the plan's own retain set

Method = Annotated[
    Literal["lora", "full", "dreambooth"],
    Choices(
        lora="train a LoRA",
        full="train all weights of the denoiser",
        dreambooth="train a LoRA with DreamBooth's prior preservation",
    ),
]
Optimiser = Annotated[
    Literal["adamw", "sgd"],
    Choices(adamw="AdamW", sgd="plain stochastic gradient descent"),
]
LearningRateSchedule = Annotated[
    Literal["constant", "linear", "cosine"],
    Choices(
        constant="the learning rate stays",
        linear="it falls to 0 in a straight line",
        cosine="it falls to 0 along a cosine",
    ),
]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneConfig:
    """One way in which a user may fine-tune the published checkpoint."""

    name: Annotated[
        str, NOT_EMPTY, Help("Name of this simulated user in reports and messages; no two alike.")
    ]
    data: Annotated[
        str,
        PATH,
        NOT_EMPTY,
        Help(
            'Folder of images with captions that the user trains on, or "retain" for the plan\'s '
            "retain set."
        ),
    ] = RETAIN
    learning_rate: Annotated[
        float, Range(0, 1, above=True, usual="1e-6 to 1e-3"), Help("Learning rate of the user.")
    ] = 1e-4
    steps: Annotated[
        int,
        Range(1, 100_000),
        Help(
            "Training steps of one simulated run; if the regulator is enabled, its length at the "
            "start."
        ),
    ] = 20
    method: Annotated[Method, Help("How the user fine-tunes.")] = "lora"
    optimiser: Annotated[Optimiser, Help("Optimiser of the user.")] = "adamw"
    schedule: Annotated[LearningRateSchedule, Help("Course of the learning rate over the run.")] = (
        "constant"
    )
    weight_decay: Annotated[float, Range(0, 1), Help("Weight decay of the optimiser.")] = 0.0
    batch: Annotated[int, Range(1, 4096), Help("Images in one training step of the user.")] = 1
    rank: Annotated[
        int, Range(1, 1024), Help('Rank of the user\'s LoRA (simulate = "adapter").')
    ] = 4
    concept_share: Annotated[
        float,
        Range(0, 1),
        Help(
            "Share of each batch that is drawn from the forget set; 0 is a user who never trains "
            "on the concept."
        ),
    ] = 0.0
    caption_dropout: Annotated[
        float, Range(0, 1), Help("Share of samples that are trained on without their caption.")
    ] = 0.0
    prior_data: Annotated[
        str,
        PATH,
        Help('Images for DreamBooth\'s prior preservation: a folder, or "retain".'),
    ] = RETAIN
    prior_weight: Annotated[
        float, Range(0), Help("Weight of DreamBooth's prior preservation loss.")
    ] = 1.0

    def __post_init__(self) -> None:
        check_fields(self, f"fine-tuning {self.name or '(no name)'}")


def fine_tune_grid(
    *,
    data: Iterable[str] = (RETAIN,),
    method: Iterable[Method] = ("lora",),
    optimiser: Iterable[Optimiser] = ("adamw",),
    learning_rate: Iterable[float] = (1e-4, 1e-5),
    steps: Iterable[int] = (5, 20),
    **common: object,
) -> tuple[FineTuneConfig, ...]:
    """Return one configuration for every combination, named after what sets it apart."""
    return tuple(
        FineTuneConfig(
            name=f"{d}/{m}/{o}/{rate:g}x{n}",
            data=d, method=m, optimiser=o, learning_rate=rate, steps=n,
            **common,  # type: ignore[arg-type]
        )
        for d, m, o, rate, n in itertools.product(data, method, optimiser, learning_rate, steps)
    )  # fmt: skip
