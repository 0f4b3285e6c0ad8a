"""Attacks: what somebody does with a published checkpoint, whether or not they mean harm.

They fine-tune it (`FineTuneAttack`), put LoRAs of their own on it (`LoraAttack`), or mix its
weights with another checkpoint's (`MergeAttack`). Rates and shares run from 0 to 1; steps count
from 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..errors import ConfigError
from .adapter import Alpha, Targets
from .checks import check_fields, freeze_lists
from .document import document
from .field import NOT_EMPTY, PATH, Choices, Help, Range
from .fine_tune import RETAIN, LearningRateSchedule
from .kernels import Precision

ORIGINAL = "original"  # MergeAttack.other: the first checkpoint of the probe

AttackMethod = Annotated[
    Literal["lora", "dora", "loha", "lokr", "full"],
    Choices(
        lora="a new LoRA", dora="a new DoRA", loha="a new LoHa", lokr="a new LoKr",
        full="all weights of the denoiser",
    ),
]  # fmt: skip
AttackOptimiser = Annotated[
    Literal["adamw", "sgd", "adamw8bit", "prodigy"],
    Choices(
        adamw="AdamW",
        sgd="plain stochastic gradient descent",
        adamw8bit="AdamW with 8-bit states (package bitsandbytes)",
        prodigy="Prodigy, which finds its own rate (package prodigyopt)",
    ),
]
MergePart = Annotated[
    Literal["denoiser", "all"],
    Choices(denoiser="only the denoiser", all="the denoiser and the text encoders"),
]
TrainedOn = Annotated[
    str,
    PATH,
    NOT_EMPTY,
    Help('Folder of images with captions to train on, or "retain" for the retain set.'),
]
AttackName = Annotated[str, NOT_EMPTY, Help("Name of the attack in the report; no two alike.")]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneAttack:
    """Fine-tuning for real, from the weights as published."""

    name: AttackName
    data: TrainedOn = RETAIN
    held_out: Annotated[
        float,
        Range(0, 0.9),
        Help(
            "Share of the data's images that is not trained on: the loss on them, before and at "
            "each evaluated step, says how well a model learns a user's harmless style or subject. "
            "0: not measured."
        ),
    ] = 0.0
    trained_on: Annotated[
        str,
        PATH,
        Help(
            'Checkpoint file of the same family on which the adapter is trained, or "original" for '
            "the first checkpoint of the probe; it is then put on the model. Empty: the model "
            "itself is trained."
        ),
    ] = ""
    concept_share: Annotated[
        float,
        Range(0, 1),
        Help(
            "Share of each batch that is drawn from the forget set: 0 is benign, 1 is the concept "
            "alone."
        ),
    ] = 0.0
    method: Annotated[AttackMethod, Help("What is trained.")] = "lora"
    targets: Targets = ("attention",)
    rank: Annotated[int, Range(1, 1024), Help("Rank of the new adapter.")] = 8
    alpha: Alpha = 0.0
    dropout: Annotated[float, Range(0, 0.99), Help("Dropout of the adapter's input.")] = 0.0
    optimiser: Annotated[AttackOptimiser, Help("Optimiser of the attack.")] = "adamw"
    learning_rate: Annotated[
        float,
        Range(0, 2, above=True, usual="1e-6 to 1e-3, and 1 for prodigy"),
        Help("Learning rate of the attack."),
    ] = 1e-4
    schedule: Annotated[
        LearningRateSchedule, Help("Course of the learning rate after the warm-up.")
    ] = "constant"
    warm_up_steps: Annotated[
        int, Range(0, "steps"), Help("Updates over which the learning rate rises from 0.")
    ] = 0
    weight_decay: Annotated[float, Range(0, 1), Help("Weight decay of the optimiser.")] = 0.01
    gradient_norm: Annotated[
        float, Range(0), Help("L2 norm to which the gradient is clipped; 0: no clipping.")
    ] = 1.0
    steps: Annotated[int, Range(1, 1_000_000), Help("Updates of the attack.")] = 100
    looks: Annotated[
        tuple[int, ...],
        Help("Updates after which the model is scored, rising; empty: at the end only."),
    ] = ()
    batch: Annotated[int, Range(1, 4096), Help("Images in one batch.")] = 4
    accumulate: Annotated[
        int, Range(1, 4096), Help("Batches whose gradients are added up for one update.")
    ] = 1
    caption_dropout: Annotated[
        float, Range(0, 1), Help("Share of images that are trained on without their caption.")
    ] = 0.0
    flip: Annotated[bool, Help("Mirror half of the images.")] = False
    ema: Annotated[
        float,
        Range(0, 0.99999),
        Help(
            "Decay of an exponential moving average of the weights, which is then what is scored; "
            "0: none."
        ),
    ] = 0.0
    text_encoder: Annotated[bool, Help("Train the text encoder too, in the same way.")] = False
    text_encoder_learning_rate: Annotated[
        float, Range(0, 2, above=True), Help("Learning rate of the text encoder.")
    ] = 5e-6
    prior_data: Annotated[
        str,
        PATH,
        Help(
            'Images for DreamBooth\'s prior preservation: a folder, or "retain"; empty: no prior '
            "preservation."
        ),
    ] = ""
    prior_weight: Annotated[
        float, Range(0), Help("Weight of DreamBooth's prior preservation loss.")
    ] = 1.0
    precision: Annotated[
        Precision,
        Help("Arithmetic of the forward passes (autocast); what is trained stays in fp32."),
    ] = "fp32"
    gradient_checkpointing: Annotated[
        bool, Help("Needs less memory, and about a third more time.")
    ] = False

    def __post_init__(self) -> None:
        freeze_lists(self)
        object.__setattr__(self, "looks", self.looks or (self.steps,))
        who = _who(self.name)
        check_fields(self, who)
        if list(self.looks) != sorted(set(self.looks)) or self.looks[0] < 1:
            raise ConfigError(f"{who}: looks are {list(self.looks)}; give rising steps from 1")
        if self.trained_on and (self.method == "full" or self.text_encoder):
            raise ConfigError(
                f"{who}: trained_on takes an adapter of the denoiser; choose another method than "
                "full, and no text_encoder"
            )
        if self.held_out and (self.text_encoder or self.concept_share == 1):
            raise ConfigError(
                f"{who}: held_out measures what the denoiser learns of its data; choose no "
                "text_encoder, and a concept_share below 1"
            )
        if self.looks[-1] > self.steps:
            raise ConfigError(f"{who}: looks at step {self.looks[-1]}, but it has {self.steps}")


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """One LoRA file and how strongly it is applied."""

    path: Annotated[
        str,
        PATH,
        NOT_EMPTY,
        Help("LoRA as .safetensors: kohya, diffusers, PEFT, LoHa, LoKr or DoRA."),
    ]
    strength: Annotated[float, Range(-100, 100), Help("Strength on the denoiser.")] = 1.0
    text_strength: Annotated[
        float | None,
        Help("Strength on the text encoder; if left out, the same as on the denoiser."),
    ] = None

    def __post_init__(self) -> None:
        check_fields(self, "LoRA")


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAttack:
    """The user's own LoRAs put on the checkpoint, several at once; no training."""

    name: AttackName
    loras: Annotated[tuple[LoraFile, ...], NOT_EMPTY, Help("LoRA files, put on together.")]

    def __post_init__(self) -> None:
        freeze_lists(self)
        check_fields(self, _who(self.name))


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class MergeAttack:
    """Weights mixed with another checkpoint's: (1 − weight) · model + weight · other.

    Weights between 0 and 1 are merges as people make them; 1 with "original" gives the original
    back; 2 takes off twice what hardening added (θ to −θ), which an attacker who has the original
    can do.
    """

    name: AttackName
    other: Annotated[
        str,
        PATH,
        NOT_EMPTY,
        Help('Checkpoint file to mix in, or "original" for the first checkpoint of the probe.'),
    ] = ORIGINAL
    weight: Annotated[
        float,
        Range(-10, 10, usual="0 to 1"),
        Help(
            "Share of the other checkpoint: (1 - weight) times the model + weight times the other. "
            "2 with the original takes off twice what hardening added."
        ),
    ] = 0.5
    part: Annotated[MergePart, Help("What is mixed.")] = "denoiser"

    def __post_init__(self) -> None:
        check_fields(self, _who(self.name))


Attack = FineTuneAttack | LoraAttack | MergeAttack


def _who(name: str) -> str:
    return f"attack {name or '(no name)'}"
