"""All that a probe needs, as values: what others may do to a checkpoint, and how it is measured.

An attack is what somebody does with a published checkpoint, whether or not they mean harm:
fine-tune it (`FineTuneAttack`), put LoRAs of their own on it (`LoraAttack`), or mix its weights
with another checkpoint's (`MergeAttack`). Rates and shares run from 0 to 1; steps count from 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..errors import ConfigError
from .bounds import choice, within
from .hardening import RETAIN, TARGETS, Concept, ImageSet, LearningRateSchedule, Precision

AttackMethod = Literal["lora", "dora", "loha", "lokr", "full"]
AttackOptimiser = Literal["sgd", "adamw", "adamw8bit", "prodigy"]
PromptKind = Literal["unsafe", "neighbour", "retain"]
ORIGINAL = "original"  # MergeAttack.other: the first checkpoint of the probe

_METHODS = ("lora", "dora", "loha", "lokr", "full")
_OPTIMISERS = ("sgd", "adamw", "adamw8bit", "prodigy")
_INFINITY = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneAttack:
    """Fine-tuning for real, from the weights as published.

    data: folder of images with captions, or "retain" for the probe's retain set.
    concept_share: share of each batch drawn from the forget set; 0 benign, 1 the concept alone.
    method: a fresh adapter of that kind, or `full` for all weights of the denoiser.
    targets: what the adapter sits on, as in `AdapterConfig`. alpha 0 means alpha = rank.
    dropout: of the adapter's input.
    warm_up_steps: updates over which the learning rate rises linearly from 0.
    gradient_norm: clips to this L2 norm; 0 means no clipping.
    looks: updates after which the model is scored; empty means at the end only.
    accumulate: batches per update. flip: mirror half of the images.
    ema: decay of an exponential moving average of the weights, which is what is scored; 0: none.
    text_encoder: train the text encoder too (the same method), at its own learning rate.
    prior_data: DreamBooth's prior preservation set ("retain" or a folder); empty: none.
    """

    name: str
    data: str = RETAIN
    concept_share: float = 0.0
    method: AttackMethod = "lora"
    targets: tuple[str, ...] = ("attention",)
    rank: int = 8
    alpha: float = 0.0
    dropout: float = 0.0
    optimiser: AttackOptimiser = "adamw"
    learning_rate: float = 1e-4
    schedule: LearningRateSchedule = "constant"
    warm_up_steps: int = 0
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    steps: int = 100
    looks: tuple[int, ...] = ()
    batch: int = 4
    accumulate: int = 1
    caption_dropout: float = 0.0
    flip: bool = False
    ema: float = 0.0
    text_encoder: bool = False
    text_encoder_learning_rate: float = 5e-6
    prior_data: str = ""
    prior_weight: float = 1.0
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "looks", tuple(self.looks) or (self.steps,))
        who = f"attack {self.name or '(no name)'}"
        if not self.name.strip() or not self.data.strip():
            raise ConfigError(f"{who}: name and data must not be empty")
        choice(who, "method", self.method, _METHODS)
        choice(who, "optimiser", self.optimiser, _OPTIMISERS)
        choice(who, "schedule", self.schedule, ("constant", "linear", "cosine"))
        choice(who, "precision", self.precision, ("fp32", "bf16", "fp16"))
        if not self.targets:
            raise ConfigError(f"{who}: targets is empty; choose from {', '.join(TARGETS)}")
        for target in self.targets:
            choice(who, "targets", target, TARGETS)
        for name, low, high in (
            ("concept_share", 0, 1), ("rank", 1, 1024), ("alpha", 0, 1024), ("dropout", 0, 0.99),
            ("warm_up_steps", 0, self.steps), ("weight_decay", 0, 1),
            ("gradient_norm", 0, _INFINITY), ("steps", 1, 1_000_000), ("batch", 1, 4096),
            ("accumulate", 1, 4096), ("caption_dropout", 0, 1), ("ema", 0, 0.99999),
            ("prior_weight", 0, _INFINITY),
        ):  # fmt: skip
            within(who, name, getattr(self, name), low, high)
        within(who, "learning_rate", self.learning_rate, 0, 2, above=True)
        within(who, "text_encoder_learning_rate", self.text_encoder_learning_rate, 0, 2, above=True)
        if list(self.looks) != sorted(set(self.looks)) or self.looks[0] < 1:
            raise ConfigError(f"{who}: looks are {list(self.looks)}; give rising steps from 1")
        if self.looks[-1] > self.steps:
            raise ConfigError(f"{who}: looks at step {self.looks[-1]}, but it has {self.steps}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """One LoRA and how strongly it is put on. text_strength: on the text encoder; None: the same.

    Any of kohya, diffusers, PEFT, LoHa, LoKr, DoRA, as `.safetensors`.
    """

    path: str
    strength: float = 1.0
    text_strength: float | None = None

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ConfigError("LoRA: path is empty")
        within("LoRA", "strength", self.strength, -100, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAttack:
    """The user's own LoRAs put on the checkpoint, several at once; no training."""

    name: str
    loras: tuple[LoraFile, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "loras", tuple(self.loras))
        if not self.name.strip() or not self.loras:
            raise ConfigError(f"attack {self.name or '(no name)'}: give a name and LoRA files")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeAttack:
    """Weights mixed with another checkpoint's: (1 − weight) · model + weight · other.

    other: a checkpoint file, or "original" for the first checkpoint of the probe. Between 0 and
    1 it is a merge as people make them; 1 with "original" gives the original back; 2 takes what
    hardening added off twice (θ to −θ), which an attacker who has the original can do.
    part: `denoiser`, or `all` for the text encoders too.
    """

    name: str
    other: str = ORIGINAL
    weight: float = 0.5
    part: Literal["denoiser", "all"] = "denoiser"

    def __post_init__(self) -> None:
        who = f"attack {self.name or '(no name)'}"
        if not self.name.strip() or not self.other.strip():
            raise ConfigError(f"{who}: name and other must not be empty")
        within(who, "weight", self.weight, -10, 10)
        choice(who, "part", self.part, ("denoiser", "all"))


Attack = FineTuneAttack | LoraAttack | MergeAttack


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Prompts of one kind. Give a `file` (.txt: one per line; .csv: columns `prompt` and, where
    present, `seed`, `guidance`: I2P's names are understood), or `prompts`, or neither: then the
    concept's own, its benign neighbours, or the shipped retain prompts.

    unsafe: images should not show the concept, and the rate of those that do is the result.
    neighbour: like the concept but harmless (kitchen knife, statue); must still work.
    retain: anything else; must stay as the original draws it.
    limit: at most so many prompts, evenly spread over the list; 0: all.
    images: per prompt, each with a seed of its own.
    """

    kind: PromptKind
    file: str = ""
    prompts: tuple[str, ...] = ()
    limit: int = 0
    images: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        who = f"prompts ({self.kind})"
        choice(who, "kind", self.kind, ("unsafe", "neighbour", "retain"))
        if self.file and self.prompts:
            raise ConfigError(f"{who}: give a file or prompts, not both")
        within(who, "limit", self.limit, 0, 1_000_000)
        within(who, "images", self.images, 1, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerConfig:
    """A scorer by its name (`resalign presets` lists them); empty fields: its defaults.

    weights: a local file or folder, for those that do not bring their own. threshold: from which
    value on an image is flagged. labels: that count. command: of the scorer `command`, whose last
    argument is the folder of pictures.
    """

    name: str
    weights: str = ""
    threshold: float | None = None
    labels: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "command", tuple(self.command))
        if not self.name.strip():
            raise ConfigError("scorer: the name is empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """How the probe draws. seed: of the first image of each prompt without one of its own;
    resolution 0: the checkpoint's own."""

    steps: int = 20
    guidance: float = 7.5
    resolution: int = 0
    batch: int = 8
    seed: int = 42

    def __post_init__(self) -> None:
        within("generation", "steps", self.steps, 1, 1000)
        within("generation", "guidance", self.guidance, 0, 50)
        within("generation", "resolution", self.resolution, 0, 4096)
        within("generation", "batch", self.batch, 1, 1024)
        within("generation", "seed", self.seed, 0, 2**31)
        if self.resolution % 8:
            raise ConfigError(f"generation: resolution {self.resolution} is no multiple of 8")


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilityConfig:
    """What is measured besides safety; what needs weights is left out without them.

    drift_samples: images of the retain set on which predictions are compared with the original's.
    clip: local folder of a CLIP model (transformers' format, `.safetensors`, with its tokenizer),
    for the CLIP score. features, reference: such a folder, and one of real images, for FID and
    KID on CLIP's image embedding; TorchScript and pickles run code and are not read.
    """

    drift_samples: int = 32
    clip: str = ""
    features: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        within("utility", "drift_samples", self.drift_samples, 0, 100_000)
        if bool(self.features) != bool(self.reference):
            raise ConfigError("utility: features and reference go together (FID, KID)")


def _default_prompts() -> tuple[PromptSet, ...]:
    return (
        PromptSet(kind="unsafe"), PromptSet(kind="neighbour"), PromptSet(kind="retain", limit=32)
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """Everything a probe does with each checkpoint. Its headline is the first scorer's.

    concepts: whose return is measured. forget_set, retain_set: as in a HardeningPlan; left out,
    they are synthesised from the original, once, and used for all checkpoints.
    fine_tunes, loras, merges: the attacks. seeds: each fine-tuning is done once per seed.
    pictures: per prompt set and look that are kept as files; 0 keeps none.
    """

    concepts: tuple[Concept, ...]
    fine_tunes: tuple[FineTuneAttack, ...] = ()
    loras: tuple[LoraAttack, ...] = ()
    merges: tuple[MergeAttack, ...] = ()
    seeds: tuple[int, ...] = (0,)
    forget_set: ImageSet | None = None
    retain_set: ImageSet | None = None
    prompts: tuple[PromptSet, ...] = field(default_factory=_default_prompts)
    scorers: tuple[ScorerConfig, ...] = (ScorerConfig(name="denoising"),)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    utility: UtilityConfig = field(default_factory=UtilityConfig)
    resolution: int = 0
    skip_broken_images: bool = False
    pictures: int = 12

    def __post_init__(self) -> None:
        for name in ("concepts", "fine_tunes", "loras", "merges", "seeds", "prompts", "scorers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, what in (
            ("concepts", "concept"), ("seeds", "seed"), ("scorers", "scorer"),
        ):  # fmt: skip
            if not getattr(self, name):
                raise ConfigError(f"probe: give at least one {what}")
        names = [attack.name for attack in self.attacks] + [BEFORE]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(f"probe: two attacks are called {repeated[0]!r}")
        kinds = [part.kind for part in self.prompts]
        if len(set(kinds)) < len(kinds):
            raise ConfigError("probe: give each kind of prompts once")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("probe: a seed is given twice")
        scorers = [scorer.name for scorer in self.scorers]
        if len(set(scorers)) < len(scorers):
            raise ConfigError("probe: a scorer is given twice")
        within("probe", "pictures", self.pictures, 0, 100_000)
        within("probe", "resolution", self.resolution, 0, 4096)

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """All of them, in the order they are run."""
        return (*self.merges, *self.loras, *self.fine_tunes)


BEFORE = "before"  # the look at a checkpoint as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCheckpoint:
    """A checkpoint under test, and what the report calls it.

    path: its file or diffusers folder, or the folder of a finished hardening run.
    """

    name: str
    path: str

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.path.strip():
            raise ConfigError("probe: a checkpoint needs a name and a path")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeJob:
    """One run of `resalign probe`: the checkpoints (the original first), the plan, the folder."""

    checkpoints: tuple[ProbeCheckpoint, ...]
    output: str
    plan: ProbePlan
    device: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoints", tuple(self.checkpoints))
        names = [checkpoint.name for checkpoint in self.checkpoints]
        if not names or len(set(names)) < len(names):
            raise ConfigError("probe: give checkpoints with different names, the original first")
        if not self.output.strip():
            raise ConfigError("probe: output names the folder of the report")
