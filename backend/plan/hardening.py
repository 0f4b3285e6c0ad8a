"""All that a hardening run needs, as values: built by hosts, executed by the backend.

Every class is frozen, checked at birth and survives a round trip through JSON (`plan_file.py`).
Rates and shares run from 0 to 1; steps count from 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Literal

from ..errors import ConfigError
from .bounds import choice, within
from .kernels import KernelConfig
from .methods import FACTS
from .quantization import Quantization, check_quantization
from .ramp import Ramp
from .solver import SolverConfig
from .stages import (
    METHODS,
    EditConfig,
    HardeningMethod,
    ProjectionConfig,
    Stage,
)

Method = Literal["lora", "full", "dreambooth"]
Optimiser = Literal["sgd", "adamw"]
LearningRateSchedule = Literal["constant", "linear", "cosine"]
Simulate = Literal["shared", "adapter", "full"]
HarmLoss = Literal["ascent", "redirect"]
Precision = Literal["fp32", "bf16", "fp16"]
TARGETS = ("attention", "cross_attention_kv", "feed_forward", "convolution")
RETAIN = "retain"  # FineTuneConfig.data: the plan's own retain set

_INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images with captions: a folder, or prompts to synthesise from the checkpoint itself.

    folder: images with kohya `.txt` captions beside them, or `metadata.jsonl` / `.csv`.
    prompts: synthesise from these instead (latents are kept, nothing is decoded to disk).
    images: how many to synthesise; they cycle through the prompts.
    caption: used for images that have none; empty means that such an image is an error.
    """

    folder: str = ""
    _: KW_ONLY
    prompts: tuple[str, ...] = ()
    images: int = 64
    sampling_steps: int = 25
    guidance: float = 7.5
    caption: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(self.folder))
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if bool(self.folder) == bool(self.prompts):
            raise ConfigError(
                "image set: give a folder, or prompts to synthesise from, and not both"
            )
        within("image set", "images", self.images, 1, 1_000_000)
        within("image set", "sampling_steps", self.sampling_steps, 1, 1000)
        within("image set", "guidance", self.guidance, 0, 50)


@dataclass(frozen=True, slots=True)
class Concept:
    """What is to be removed.

    prompts: ways to ask for it; used to synthesise the forget set, and by the redirect loss.
    anchor: what it should become (redirect loss); empty means the unconditional prompt.
    images: its forget set; None means synthesised from `prompts`.
    weight: its share among several concepts, relative to the others.
    """

    name: str
    prompts: tuple[str, ...] = ()
    anchor: str = ""
    images: ImageSet | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not self.name.strip():
            raise ConfigError("concept: the name is empty")
        if not self.prompts and self.images is None:
            raise ConfigError(f"concept {self.name}: give prompts, or images of it, or both")
        if any(not prompt.strip() for prompt in self.prompts):
            raise ConfigError(f"concept {self.name}: one of its prompts is empty")
        within(f"concept {self.name}", "weight", self.weight, 0, _INFINITY, above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneConfig:
    """One way in which a user may fine-tune the published checkpoint.

    data: folder of images with captions, or "retain" for the plan's retain set.
    concept_share: share of each batch that is drawn from the forget set instead.
    prior_data, prior_weight: DreamBooth's prior preservation set ("retain" or a folder).
    """

    name: str
    data: str = RETAIN
    learning_rate: float = 1e-4
    steps: int = 20
    method: Method = "lora"
    optimiser: Optimiser = "adamw"
    schedule: LearningRateSchedule = "constant"
    weight_decay: float = 0.0
    batch: int = 1
    rank: int = 4
    concept_share: float = 0.0
    caption_dropout: float = 0.0
    prior_data: str = RETAIN
    prior_weight: float = 1.0

    def __post_init__(self) -> None:
        who = f"fine-tuning {self.name or '(no name)'}"
        if not self.name.strip() or not self.data.strip():
            raise ConfigError(f"{who}: name and data must not be empty")
        choice(who, "method", self.method, ("lora", "full", "dreambooth"))
        choice(who, "optimiser", self.optimiser, ("sgd", "adamw"))
        choice(who, "schedule", self.schedule, ("constant", "linear", "cosine"))
        hint = "; fine-tuning of Stable Diffusion uses 1e-6 to 1e-3"
        within(who, "learning_rate", self.learning_rate, 0, 1, hint, above=True)
        within(who, "steps", self.steps, 1, 100_000)
        within(who, "batch", self.batch, 1, 4096)
        within(who, "rank", self.rank, 1, 1024)
        for name in ("weight_decay", "concept_share", "caption_dropout"):
            within(who, name, getattr(self, name), 0, 1)
        within(who, "prior_weight", self.prior_weight, 0, _INFINITY)


def fine_tune_grid(
    *,
    data: Iterable[str] = (RETAIN,),
    method: Iterable[Method] = ("lora",),
    optimiser: Iterable[Optimiser] = ("adamw",),
    learning_rate: Iterable[float] = (1e-4, 1e-5),
    steps: Iterable[int] = (5, 20),
    **common: object,
) -> tuple[FineTuneConfig, ...]:
    """Every combination as one configuration, named after what sets it apart."""
    return tuple(
        FineTuneConfig(
            name=f"{d}/{m}/{o}/{rate:g}x{n}",
            data=d, method=m, optimiser=o, learning_rate=rate, steps=n,
            **common,  # type: ignore[arg-type]
        )
        for d, m, o, rate, n in itertools.product(data, method, optimiser, learning_rate, steps)
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Shape of θ. alpha 0 means alpha = rank (strength 1).

    targets: `attention` (q, k, v, out of self- and cross-attention), `cross_attention_kv`,
    `feed_forward`, `convolution`; several may be given.
    """

    rank: int = 4
    alpha: float = 0.0
    targets: tuple[str, ...] = ("attention",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        within("adapter", "rank", self.rank, 1, 1024)
        within("adapter", "alpha", self.alpha, 0, 1024)
        if not self.targets:
            raise ConfigError(f"adapter: targets is empty; choose from {', '.join(TARGETS)}")
        for target in self.targets:
            choice("adapter", "targets", target, TARGETS)

    @property
    def effective_alpha(self) -> float:
        return self.alpha or float(self.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmConfig:
    """How the concept's loss is formed.

    ascent: −mean(cap · tanh(m / cap)) of the per-sample denoising error m; without the
        saturation utility collapses. Good caps are about 5 to 10 times the model's usual error.
    redirect: distance to the frozen model's prediction for the anchor prompt, pushed away from
        the concept by `guidance` (ESD: Gandikota et al., arXiv:2303.07345).
    """

    loss: HarmLoss = "ascent"
    cap: float = 0.5
    guidance: float = 1.0

    def __post_init__(self) -> None:
        choice("harm", "loss", self.loss, ("ascent", "redirect"))
        within("harm", "cap", self.cap, 0, 1e6, above=True)
        within("harm", "guidance", self.guidance, 0, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegulatorConfig:
    """Keeps the simulated user worth hardening against.

    q = L_harm(θ*) / L_harm(θ) is what is left of the harm loss after the simulated run: 1 means
    that it brought nothing back, 0 that it brought everything back. Above `high` the inner
    loop grows by `factor`, below `low` it shrinks, within `min_steps` to `max_steps`. After
    `patience` steps in a row above `high` at full length a warning names the knob.
    """

    enabled: bool = True
    low: float = 0.6
    high: float = 0.8
    factor: float = 1.1
    min_steps: int = 4
    max_steps: int = 40
    patience: int = 10

    def __post_init__(self) -> None:
        within("regulator", "low", self.low, 0, 1)
        within("regulator", "high", self.high, self.low, 1, " (low to 1)")
        within("regulator", "factor", self.factor, 1, 10, above=True)
        within("regulator", "min_steps", self.min_steps, 1, 100_000)
        within("regulator", "max_steps", self.max_steps, self.min_steps, 100_000)
        within("regulator", "patience", self.patience, 1, 100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class HardeningPlan:
    """Everything a hardening run is, apart from the checkpoint it is applied to.

    The objective of an outer step is L_harm(θ) + λ·mean_j[L_harm(θ*_j) − L_harm(θ)]
    + μ·L_retain(θ); see docs/method.md.

    method: `resalign`, or one of the fast ones, which simulate nobody: `redirect` (training
        towards the anchors, ESD-like), `project` (unlearning held out of what retain samples
        use, PGU-like), `closed_form` (an edit of the cross-attention, UCE-like: one step).
    before: stages that run first; each goes on from what those before it left.
    concepts: what to remove; `concept=` is the short form for one.
    forget_set: images of the concepts, where they bring none of their own.
    retain_set: what must stay; None synthesises from the shipped retain prompts.
    fine_tunes: the pool of simulated users; empty means plain unlearning (λ has no effect).
    configurations_per_step: J, drawn without replacement for each outer step.
    simulate: what a simulated user trains: `shared` the safety adapter itself (the paper),
        `adapter` a fresh LoRA on the hardened weights (configurations with method `full` then
        train all weights), `full` all denoiser weights.
    proximal: adds ‖φ − φ0‖² / 2γ to the simulated user's loss, so that θ* is the stationary
        point the implicit gradient assumes; off, it is plain fine-tuning (as published).
    outer_steps: updates of θ in all, `warm_up_steps` of which are plain unlearning (λ = 0).
    learning_rate, final_learning_rate: of AdamW on θ; constant in the warm-up, then falling
        linearly to the second. 0 means no fall.
    resilience_weight: λ, a number or a Ramp over the steps after the warm-up.
    retain_weight: μ, a number or a Ramp over all steps.
    retain_after_weight: ν, adds ν · mean_j L_retain(θ*_j): the model stays useful when others
        fine-tune it, instead of breaking. 0, the paper's objective, leaves that to chance.
    gradient_norm: clips the outer gradient to this L2 norm; 0 means no clipping.
    users_at_once: of an outer step's users, how many share a pass in their inner steps: quicker,
        for the memory of so many batches (`simulate = "shared"` and whole batches only).
    quantization: of the denoiser's frozen linear layers during the run (`int8`, `nf4`).
    micro_batch: samples whose graph is alive at a time, gradients added up; 0: whole batches.
    save_every: outer steps between two saved states.
    """

    method: HardeningMethod = "resalign"
    before: tuple[Stage, ...] = ()
    concepts: tuple[Concept, ...] = ()
    concept: InitVar[Concept | None] = None
    forget_set: ImageSet | None = None
    retain_set: ImageSet | None = None
    fine_tunes: tuple[FineTuneConfig, ...] = ()
    configurations_per_step: int = 1
    simulate: Simulate = "shared"
    proximal: bool = False
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    harm: HarmConfig = field(default_factory=HarmConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    regulator: RegulatorConfig = field(default_factory=RegulatorConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)
    outer_steps: int = 160
    warm_up_steps: int = 60
    learning_rate: float = 2e-4
    final_learning_rate: float = 0.0
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    forget_batch: int = 4
    retain_batch: int = 4
    resilience_weight: float | Ramp = 0.8
    retain_weight: float | Ramp = 8.0
    retain_after_weight: float = 0.0
    caption_dropout: float = 0.1
    resolution: int = 0
    precision: Precision = "fp32"
    quantization: Quantization = "none"
    gradient_checkpointing: bool = False
    users_at_once: int = 1
    micro_batch: int = 0
    skip_broken_images: bool = False
    save_every: int = 5
    seed: int = 0

    def __post_init__(self, concept: Concept | None) -> None:
        concepts = tuple(self.concepts) + ((concept,) if isinstance(concept, Concept) else ())
        object.__setattr__(self, "concepts", concepts)
        object.__setattr__(self, "fine_tunes", tuple(self.fine_tunes))
        object.__setattr__(self, "before", tuple(self.before))
        choice("plan", "method", self.method, METHODS)
        if FACTS[self.method].single_step:
            object.__setattr__(self, "outer_steps", 1)
            object.__setattr__(self, "warm_up_steps", 0)
        self._check_names()
        check_quantization(self)
        choice("plan", "simulate", self.simulate, ("shared", "adapter", "full"))
        choice("plan", "precision", self.precision, ("fp32", "bf16", "fp16"))
        for name in ("outer_steps", "forget_batch", "retain_batch", "save_every"):
            within("plan", name, getattr(self, name), 1, 1_000_000)
        within("plan", "warm_up_steps", self.warm_up_steps, 0, self.outer_steps)
        within("plan", "learning_rate", self.learning_rate, 0, 1, above=True)
        for name in ("final_learning_rate", "weight_decay", "caption_dropout"):
            within("plan", name, getattr(self, name), 0, 1)
        within("plan", "gradient_norm", self.gradient_norm, 0, _INFINITY)
        for name in ("resilience_weight", "retain_weight", "retain_after_weight"):
            if not isinstance(getattr(self, name), Ramp):
                within("plan", name, getattr(self, name), 0, 1e6)
        within("plan", "seed", self.seed, 0, 2**63 - 1)
        for name in ("resolution", "micro_batch"):
            within("plan", name, getattr(self, name), 0, 4096)
        within("plan", "users_at_once", self.users_at_once, 1, 64)
        if self.users_at_once > 1 and (self.simulate != "shared" or self.micro_batch):
            raise ConfigError(
                f"plan: users_at_once is {self.users_at_once}; users share passes only with "
                'simulate = "shared" and whole batches (micro_batch = 0)'
            )
        if self.resolution % 8:
            raise ConfigError(f"plan: resolution is {self.resolution}; it must be a multiple of 8")

    def _check_names(self) -> None:
        if not self.concepts:
            raise ConfigError("plan: name at least one concept to remove")
        for kind, items in (("concept", self.concepts), ("fine-tuning", self.fine_tunes)):
            names = [item.name for item in items]
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ConfigError(f"plan: two {kind} entries are called {repeated[0]!r}")
        pool = len(self.fine_tunes)
        within("plan", "configurations_per_step (J)", self.configurations_per_step, 1, _INFINITY)
        if pool and self.configurations_per_step > pool:
            raise ConfigError(
                f"plan: configurations_per_step is {self.configurations_per_step}, but only "
                f"{pool} fine-tuning configurations are given; they are drawn without replacement"
            )

    @property
    def resilience_steps(self) -> int:
        """Outer steps after the warm-up."""
        return self.outer_steps - self.warm_up_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of the command line: a plan, the checkpoint it hardens, and where things go.

    output: the hardened checkpoint (a file, or a folder where the source is a folder).
    lora, run_folder: where those go; empty means beside the output, and `<output>.run`.
    device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
    """

    checkpoint: str
    output: str
    plan: HardeningPlan
    lora: str = ""
    run_folder: str = ""
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, what in (("checkpoint", "to harden"), ("output", "to write the result to")):
            if not getattr(self, name).strip():
                raise ConfigError(f"{name}: name the file or diffusers folder {what}")
