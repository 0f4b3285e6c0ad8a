"""Settings of the methods that change all weights, `erase` and `distil`, and of their data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..errors import ConfigError
from .adapter import Target
from .checks import check_fields, freeze_lists
from .document import document
from .field import PATH, Choices, Help, Range
from .kernels import Precision

Towards = Annotated[
    Literal["image", "anchor"],
    Choices(
        image="what is on the images of what must stay, a blend of everything",
        anchor="the concept's anchor prompt; as `image` where it has none",
    ),
]
Convolutions = Annotated[
    Literal["channels", "patches"],
    Choices(
        channels="the channels at one place",
        patches="all that the kernel sees at once, k · k places; k is mostly 3",
    ),
]
EraseWay = Annotated[
    Literal["directions", "random", "shrink", "fisher"],
    Choices(
        directions="directions of layers' inputs that are the concepts' own",
        random="as many random directions (a control)",
        shrink="a share of all weights, in whose place noise comes (after UNDO)",
        fisher="weights whose squared gradient on the concepts is large beside that on the rest",
    ),
]
Optimiser = Literal["adamw", "adamw8bit"]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class VariedConfig:
    """Images that the checkpoint draws of many different things, which must stay.

    `erase` and `distil` use them beside the retain set: what neither of the two spans is lost.
    """

    images: Annotated[
        int,
        Range(0, 1_000_000, usual="500 to 7000"),
        Help(
            "Images that are drawn, each from a prompt of its own; presets for all weights draw "
            "1,000 or more."
        ),
    ] = 0
    lists: Annotated[
        str,
        PATH,
        Help(
            "TOML file with the lists of subjects, places and styles that prompts are composed "
            "from; empty: backend/data/varied.toml, which comes with ResAlign."
        ),
    ] = ""
    wide: Annotated[
        bool,
        Help(
            "Compose prompts from a thousand things more, which also come with ResAlign: 4000 "
            "`images` show each about twice, 7000 some four times."
        ),
    ] = False
    without: Annotated[
        tuple[str, ...],
        Help(
            "Words that no prompt may hold, besides the concepts' names: whatever is a kind of the "
            "concept (to remove dogs: puppy, terrier), because varied images keep what they show."
        ),
    ] = ()
    sampling_steps: Annotated[
        int, Range(1, 1000), Help("Sampler steps for each image that is drawn.")
    ] = 20
    guidance: Annotated[
        float, Range(0, 50), Help("Classifier-free guidance scale for the images that are drawn.")
    ] = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lists", str(self.lists))
        freeze_lists(self)
        check_fields(self, "varied")
        if any(not word.strip() for word in self.without):
            raise ConfigError("varied: without holds an empty word")


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class EraseConfig:
    """Settings of the removal from the layers in closed form (method `erase`).

    In each layer the directions of its input that are strong on the concepts and weak on everything
    else are removed from its weights.
    """

    how: Annotated[
        EraseWay,
        Help("What the weights lose. All but the first are there for comparison."),
    ] = "directions"
    ratio: Annotated[
        float,
        Range(1, 1e9, above=True, usual="2 with varied images, 4 to 10 without"),
        Help(
            "λ: directions that are more than so many times stronger on the concepts than on what "
            "must stay are removed. Lower removes more, and more of everything else."
        ),
    ] = 4.0
    samples: Annotated[
        int,
        Range(1, 10_000_000),
        Help(
            "Noised images on which the layers' inputs are measured, of the concepts and of what "
            "must stay each."
        ),
    ] = 512
    batch: Annotated[int, Range(1, 4096), Help("Images in one measuring pass.")] = 16
    floor: Annotated[
        float,
        Range(0, 1, above=True),
        Help(
            "Least strength that is assumed of any direction on what must stay, relative to the "
            "strongest; more protects weak directions."
        ),
    ] = 1e-3
    targets: Annotated[
        tuple[Target, ...],
        Help(
            "Layers to erase from; empty: all linear layers and convolutions but those that read "
            "latents, times and sizes."
        ),
    ] = ()
    convolutions: Annotated[
        Convolutions,
        Help(
            "What counts as an input of a convolution. Patches tell shapes apart that channels do "
            "not, and take matrices k⁴ times as large: a convolution whose two matrices need more "
            "than erase.memory, or whose patches are wider than erase.patch_width, is erased by "
            "channels."
        ),
    ] = "channels"
    patch_width: Annotated[
        int,
        Range(1, 1_000_000, usual="6000 to 12000"),
        Help(
            "Most numbers of a patch (channels times places under the kernel) at which a "
            "convolution is erased by patches. Time grows with the cube: decomposing a matrix of "
            "6,000 takes a minute or two of a CPU core, of 12,000 ten times as long.",
            label="Widest patches",
        ),
    ] = 6000
    memory: Annotated[
        float,
        Range(0, 1e6, above=True),
        Help("GiB for the measurements at a time; less takes more passes over the same images."),
    ] = 4.0

    kept_share: Annotated[
        float,
        Range(0, 1),
        Help('Share of each weight that how = "shrink" keeps (α).'),
    ] = 0.3
    noise: Annotated[
        float,
        Range(0, 100),
        Help(
            'Noise that how = "shrink" adds to each weight (β), relative to 1/√n for n inputs of '
            "an output."
        ),
    ] = 0.07
    reset_share: Annotated[
        float,
        Range(0, 1, above=True),
        Help('Share of each layer\'s weights that how = "fisher" sets to their mean.'),
    ] = 0.25

    def __post_init__(self) -> None:
        freeze_lists(self)
        check_fields(self, "erase")


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class DistilConfig:
    """How all weights are trained towards the original's predictions (method `distil`)."""

    learning_rate: Annotated[
        float,
        Range(0, 1, above=True, usual="1e-5 to 1e-4; 1.5e-3 on the demo"),
        Help("Learning rate of AdamW on all weights; it falls to zero along a cosine."),
    ] = 2e-5
    warm_up_steps: Annotated[
        int, Range(0, 1_000_000), Help("Steps over which the learning rate rises from zero.")
    ] = 30
    batch: Annotated[int, Range(1, 4096), Help("Images of what must stay in one step.")] = 16
    concept_share: Annotated[
        float,
        Range(0, 1),
        Help(
            "Share of each batch that is shown with a caption of the concepts, while its target is "
            "the prediction for something harmless (`towards`), which their prompts then draw."
        ),
    ] = 0.25
    towards: Annotated[
        Towards,
        Help(
            "What the concepts' prompts learn to draw: with `anchor`, give each concept one that "
            "the checkpoint draws well."
        ),
    ] = "image"
    weight_cap: Annotated[
        float,
        Range(1, 1e6),
        Help(
            "Most that the error of noisy images weighs. Weights are 1/ᾱ, at which errors of the "
            "noise and of the image count alike."
        ),
    ] = 20.0
    middle_share: Annotated[
        float,
        Range(0, 1),
        Help(
            "Share of the images whose noise is of the middle of the process, where objects take "
            "shape; the others' is as in training."
        ),
    ] = 0.5
    varied_share: Annotated[
        float,
        Range(0, 1),
        Help("Share of each batch that is drawn from the varied images, where there are any."),
    ] = 0.5
    mixed_share: Annotated[
        float,
        Range(0, 1),
        Help(
            "Share of the images whose caption is blended with that of another image, at random: "
            "keeps more of what no caption names."
        ),
    ] = 0.0
    words_share: Annotated[
        float,
        Range(0, 1, usual="0.5"),
        Help(
            "Share of the images whose caption gives way to a prompt of random words, for the "
            "original too: keeps more of what no image and no prompt of the lists shows. No "
            "picture is drawn for it.",
            label="Share with random words",
        ),
    ] = 0.0
    teacher: Annotated[
        Precision,
        Help("Numbers in which the frozen copy of the original is held."),
        Choices(fp32="exact", bf16="half the memory", fp16="half the memory"),
    ] = "fp32"
    teacher_waits: Annotated[
        bool,
        Help(
            "Keep the frozen copy in main memory while it does not predict: less memory of the "
            "device, a little more time.",
            label="Frozen copy waits in main memory",
        ),
    ] = False
    stored_draws: Annotated[
        int,
        Range(0, 10_000_000, usual="0, or steps times batch"),
        Help(
            "Draws (an image, its noise and its time) on which the original predicts once, before "
            "training, so that its copy leaves the device. Predictions are kept in the run folder; "
            "once all have been used, they are used again in a new order. 0: the copy predicts at "
            "each step.",
            label="Predictions made before training",
        ),
    ] = 0
    optimiser: Annotated[
        Optimiser,
        Help("Optimiser of all weights."),
        Choices(
            adamw="AdamW, eight bytes of moments for each weight",
            adamw8bit="AdamW with 8-bit moments, two bytes; rounds them (package bitsandbytes)",
        ),
    ] = "adamw"
    optimiser_waits: Annotated[
        bool,
        Help(
            "Keep gradients and AdamW's moments in main memory, and take those of one tensor at a "
            "time to the device: twelve bytes less of its memory for each weight, the same result, "
            "more time.",
            label="Gradients and moments wait in main memory",
        ),
    ] = False
    ema: Annotated[
        float,
        Range(0, 0.999999, usual="0.95 to 0.999"),
        Help(
            "Decay of an exponential moving average of all weights, which is then the result; 0: "
            "the weights after the last step. Needs memory for the weights once more.",
            label="Decay of the weights' average",
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "distil")
        if self.optimiser_waits and self.optimiser != "adamw":
            raise ConfigError(
                f"distil.optimiser_waits needs optimiser = 'adamw', not {self.optimiser!r}, whose "
                "moments are small and stay on the device"
            )
