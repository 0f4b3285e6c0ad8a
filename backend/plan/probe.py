"""A probe: what is done to checkpoints, and how they are measured before and after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..errors import ConfigError
from .attack import Attack, FineTuneAttack, LoraAttack, MergeAttack
from .checks import check_distinct, check_fields, freeze_lists
from .concept import Concept
from .document import document
from .field import NOT_EMPTY, PATH, Choices, Help, Range
from .images import ImageSet
from .job import Device, Prediction, TextEncoder, Vae
from .measurement import (
    CountingConfig,
    GenerationConfig,
    KeptPictures,
    PromptSet,
    ScorerConfig,
    UtilityConfig,
)
from .sweep import Sweep, swept_attacks

BEFORE = "before"  # the evaluation of a checkpoint as it is
TEST_PROBE = "this probe is a test run, too short to tell anything: do not publish its figures"
FEWEST_TRAININGS = 4  # fine-tunings, each with one seed, below which a probe is a quick look


def _default_prompts() -> tuple[PromptSet, ...]:
    return (
        PromptSet(kind="unsafe"), PromptSet(kind="neighbour"), PromptSet(kind="retain", limit=32)
    )  # fmt: skip


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """Everything a probe does with each checkpoint. Its headline is the first scorer's.

    Image sets that are left out are synthesised from the original, once, and used for all
    checkpoints.
    """

    concepts: Annotated[tuple[Concept, ...], Help("Concepts whose return is measured.")]
    fine_tunes: Annotated[
        tuple[FineTuneAttack, ...], Help("Attacks that fine-tune the checkpoint for real.")
    ] = ()
    sweeps: Annotated[
        tuple[Sweep, ...],
        Help("Fine-tunings at several learning rates and shares of the concept."),
    ] = ()
    loras: Annotated[
        tuple[LoraAttack, ...],
        Help("Attacks that put LoRAs of your own on the checkpoint; no training."),
    ] = ()
    merges: Annotated[
        tuple[MergeAttack, ...], Help("Attacks that mix in the weights of another checkpoint.")
    ] = ()
    seeds: Annotated[tuple[int, ...], Help("Each fine-tuning is done once for each seed.")] = (0,)
    forget_set: Annotated[
        ImageSet | None, Help("Images of the concepts; if left out, the original draws them.")
    ] = None
    retain_set: Annotated[
        ImageSet | None, Help("Harmless images; if left out, the original draws them.")
    ] = None
    prompts: Annotated[tuple[PromptSet, ...], Help("Prompts that are drawn; each kind once.")] = (
        field(default_factory=_default_prompts)
    )
    scorers: Annotated[
        tuple[ScorerConfig, ...],
        Help("Scorers of the images; the first one gives the headline."),
    ] = (ScorerConfig(name="denoising"),)
    generation: Annotated[GenerationConfig, Help("How images are drawn.")] = field(
        default_factory=GenerationConfig
    )
    utility: Annotated[UtilityConfig, Help("What is measured besides safety.")] = field(
        default_factory=UtilityConfig
    )
    counting: Annotated[CountingConfig, Help("Which attacks count for the headline.")] = field(
        default_factory=CountingConfig
    )
    resolution: Annotated[
        int,
        Range(0, 4096),
        Help("Side of the training images in pixels; 0 is the checkpoint's own."),
    ] = 0
    skip_broken_images: Annotated[
        bool, Help("Leave out images that cannot be read, instead of stopping with a list of them.")
    ] = False
    pictures: Annotated[
        int,
        Range(0, 100_000),
        Help(
            "Images of each evaluation and prompt set, spread over its prompts, that are kept as "
            "files; 0: none."
        ),
    ] = 12
    keep_pictures: Annotated[
        KeptPictures, Help("How pictures that a scorer flagged are kept on the disk.")
    ] = "blurred"
    test_run: Annotated[
        bool,
        Help(
            "This probe only shows that everything works: verdict, report and pack say that its "
            "figures are not to be published."
        ),
    ] = False

    def __post_init__(self) -> None:
        freeze_lists(self)
        for name, what in (
            ("concepts", "concept"), ("seeds", "seed"), ("scorers", "scorer"),
        ):  # fmt: skip
            if not getattr(self, name):
                raise ConfigError(f"probe: give at least one {what}")
        check_fields(self, "probe")
        check_distinct("probe", "sweeps", [sweep.name for sweep in self.sweeps])
        check_distinct("probe", "attacks", [BEFORE, *(attack.name for attack in self.attacks)])
        for what, values in (
            ("give each kind of prompts once", [part.kind for part in self.prompts]),
            ("a seed is given twice", self.seeds),
            ("a scorer is given twice", [scorer.name for scorer in self.scorers]),
        ):
            if len(set(values)) < len(values):
                raise ConfigError(f"probe: {what}")

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """All attacks, in the order in which they are run."""
        return (*self.merges, *self.loras, *self.trainings)

    @property
    def trainings(self) -> tuple[FineTuneAttack, ...]:
        """All attacks that train: the single ones, then those of the sweeps."""
        return (*self.fine_tunes, *(each for one in self.sweeps for each in swept_attacks(one)))


def too_short(plan: ProbePlan) -> str:
    """Say why no figure of a probe is to be published yet: it is a test run or a quick look."""
    return TEST_PROBE if plan.test_run else quick_look(plan)


def quick_look(plan: ProbePlan) -> str:
    """Say that a probe tries too few fine-tunings for its figures to be published; else empty.

    Empty for a test run, of which `TEST_PROBE` says more.
    """
    count = len(plan.trainings) * len(plan.seeds)
    if plan.test_run or count >= FEWEST_TRAININGS:
        return ""
    tried = f"{count} fine-tuning{'s' * (count > 1)}" if count else "no fine-tuning"
    return (
        f"this probe is a quick look, with {tried}: probe again by the preset standard, or with "
        f"{FEWEST_TRAININGS} or more of your own, before you publish a figure"
    )


Role = Annotated[
    Literal["", "oracle", "plain"],
    Choices(**{
        "": "a checkpoint to measure",
        "oracle": "the same network trained without the concept: the ceiling",
        "plain": "plain unlearning, or another method to start the way from",
    }),
]  # fmt: skip


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCheckpoint:
    """A checkpoint under test."""

    name: Annotated[str, NOT_EMPTY, Help("Name of the checkpoint in the report.")]
    path: Annotated[
        str,
        PATH,
        NOT_EMPTY,
        Help("A .safetensors file, a diffusers folder, or the folder of a finished run."),
    ]
    role: Annotated[
        Role,
        Help(
            "What the checkpoint is there for; with an oracle the report says how far each other "
            "checkpoint is on the way to it."
        ),
    ] = ""
    prediction: Prediction = ""
    text_encoder: TextEncoder = ""
    vae: Vae = ""

    @property
    def parts(self) -> dict[str, str]:
        """Files of components apart from the checkpoint, by component; empty: not named."""
        return {"text_encoder": self.text_encoder, "vae": self.vae}

    def __post_init__(self) -> None:
        check_fields(self, f"checkpoint {self.name}".rstrip())


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeJob:
    """One run of `resalign probe`: the checkpoints, the plan, and the folder of the report."""

    checkpoints: Annotated[
        tuple[ProbeCheckpoint, ...], Help("Checkpoints to compare; the first is the original.")
    ]
    output: Annotated[
        str,
        PATH,
        NOT_EMPTY,
        Help("Folder of the probe: evaluations, pictures, report."),
    ]
    plan: Annotated[ProbePlan, Help("What is done to each of them.")]
    device: Device = "auto"

    def __post_init__(self) -> None:
        freeze_lists(self)
        names = [checkpoint.name for checkpoint in self.checkpoints]
        if not names or len(set(names)) < len(names):
            raise ConfigError("probe: give checkpoints with different names, the original first")
        roles = [checkpoint.role for checkpoint in self.checkpoints]
        if roles[0] or any(roles.count(role) > 1 for role in ("oracle", "plain")):
            raise ConfigError(
                "probe: at most one oracle and one plain checkpoint, and the original is neither"
            )
        check_fields(self, "probe")
