"""A hardening plan: everything that a run is, apart from the checkpoint it is applied to.

Plans are built by hosts and executed by the backend. Every class of a plan is frozen, checked at
birth and survives a round trip through JSON (`file.py`). Rates and shares run from 0 to 1; steps
count from 1.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import Annotated, Literal

from ..errors import ConfigError
from .adapter import AdapterConfig
from .auto import AUTO, Auto
from .checks import check_distinct, check_fields, freeze_lists
from .concept import Concept
from .document import document
from .durable import DistilConfig, EraseConfig, VariedConfig
from .field import Choices, Help, Range
from .fine_tune import FineTuneConfig
from .harm import HarmConfig
from .images import ImageSet
from .kernels import AutoPrecision, KernelConfig
from .methods import FACTS
from .quantization import Quantization, check_quantization
from .ramp import Ramp
from .regulator import RegulatorConfig
from .solver import SolverConfig
from .stages import EditConfig, HardeningMethod, ProjectionConfig, Stage

Simulate = Annotated[
    Literal["shared", "adapter", "full"],
    Choices(
        shared="the adapter itself, as published",
        adapter="a LoRA of its own on the hardened weights (all weights if its method is full)",
        full="all weights of the denoiser",
    ),
]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class HardeningPlan:
    """All settings of a hardening run, apart from the checkpoint that it is applied to.

    The objective of an outer step is L_harm(θ) + λ·mean_j[L_harm(θ*_j) − L_harm(θ)]
    + μ·L_retain(θ) + ν·mean_j L_retain(θ*_j); see docs/method.md. `concept=` is the short form of
    `concepts=` for one.
    """

    method: Annotated[HardeningMethod, Help("Method that hardens.")] = "resalign"
    before: Annotated[
        tuple[Stage, ...],
        Help("Stages that run first; the method continues from their result."),
    ] = ()
    concepts: Annotated[tuple[Concept, ...], Help("Concepts to remove; at least one.")] = ()
    concept: InitVar[Concept | None] = None
    forget_set: Annotated[
        ImageSet | None,
        Help("Images of the concepts, for those that bring none of their own."),
    ] = None
    retain_set: Annotated[
        ImageSet | None,
        Help(
            "Images of what must stay; if left out, the checkpoint draws them from the prompts "
            "that come with ResAlign."
        ),
    ] = None
    fine_tunes: Annotated[
        tuple[FineTuneConfig, ...],
        Help("Pool of simulated users; empty is plain unlearning (λ has no effect)."),
    ] = ()
    configurations_per_step: Annotated[
        int,
        Range(1),
        Help(
            "J: users simulated for each outer step, drawn from the pool without replacement. Time "
            "grows with it.",
            label="Users per step",
        ),
    ] = 1
    simulate: Annotated[
        Simulate, Help("What a simulated user trains.", label="Simulated users train")
    ] = "shared"
    proximal: Annotated[
        bool,
        Help(
            "Hold simulated users near their start by ‖φ − φ0‖² / 2γ, as the implicit gradient "
            "assumes. Off is plain fine-tuning, as published."
        ),
    ] = False
    adapter: Annotated[AdapterConfig, Help("Shape of the adapter θ.")] = field(
        default_factory=AdapterConfig
    )
    harm: Annotated[HarmConfig, Help("Loss of the concept.")] = field(default_factory=HarmConfig)
    solver: Annotated[SolverConfig, Help("Linear solve behind the implicit gradient.")] = field(
        default_factory=SolverConfig
    )
    regulator: Annotated[RegulatorConfig, Help("Adapts how long simulated users train.")] = field(
        default_factory=RegulatorConfig
    )
    edit: Annotated[EditConfig, Help('Settings of method = "closed_form".')] = field(
        default_factory=EditConfig
    )
    projection: Annotated[ProjectionConfig, Help('Settings of method = "project".')] = field(
        default_factory=ProjectionConfig
    )
    varied: Annotated[
        VariedConfig,
        Help('More of what must stay, in great variety, for method = "erase" and "distil".'),
    ] = field(default_factory=VariedConfig)
    erase: Annotated[EraseConfig, Help('Settings of method = "erase".')] = field(
        default_factory=EraseConfig
    )
    distil: Annotated[DistilConfig, Help('Settings of method = "distil".')] = field(
        default_factory=DistilConfig
    )
    kernels: Annotated[
        KernelConfig,
        Help("Kernels that train; they change speed and last bits, nothing else."),
    ] = field(default_factory=KernelConfig)
    outer_steps: Annotated[
        int, Range(1, 1_000_000), Help("Updates of the adapter in all.", label="Steps")
    ] = 160
    warm_up_steps: Annotated[
        int,
        Range(0, "outer_steps"),
        Help("The first of the outer steps that only unlearn (λ = 0)."),
    ] = 60
    learning_rate: Annotated[
        float,
        Range(0, 1, above=True, usual="1e-5 to 1e-3"),
        Help("Learning rate of AdamW on the adapter."),
    ] = 2e-4
    final_learning_rate: Annotated[
        float,
        Range(0, 1),
        Help("Learning rate at the end, to which it falls linearly after the warm-up; 0: no fall."),
    ] = 0.0
    weight_decay: Annotated[float, Range(0, 1), Help("Weight decay of AdamW on the adapter.")] = (
        0.01
    )
    gradient_norm: Annotated[
        float, Range(0), Help("L2 norm to which the outer gradient is clipped; 0: no clipping.")
    ] = 1.0
    forget_batch: Annotated[
        int, Range(1, 1_000_000), Help("Images of the concepts in one outer step.")
    ] = 4
    retain_batch: Annotated[
        int, Range(1, 1_000_000), Help("Images of what must stay in one outer step.")
    ] = 4
    resilience_weight: Annotated[
        float | Ramp,
        Range(0, 1e6),
        Help(
            "λ: weight of what simulated fine-tuning brings back. A number, or a ramp over the "
            "steps after the warm-up.",
            label="λ, weight of relapse",
        ),
    ] = 0.8
    retain_weight: Annotated[
        float | Ramp,
        Range(0, 1e6),
        Help(
            "μ: weight of keeping everything else. Raise it if pictures of other things suffer. A "
            "number, or a ramp over all steps.",
            label="μ, weight of what stays",
        ),
    ] = 8.0
    retain_after_weight: Annotated[
        float,
        Range(0, 1e6),
        Help(
            "ν: weight of keeping everything else after simulated fine-tuning too; 0: off, as "
            "published.",
            label="ν, weight of what stays after fine-tuning",
        ),
    ] = 0.0
    caption_dropout: Annotated[
        float, Range(0, 1), Help("Share of retain samples that are shown without their caption.")
    ] = 0.1
    resolution: Annotated[
        int,
        Range(0, 4096, step=8),
        Help(
            "Side of the training images in pixels; 0 is the checkpoint's own.",
            label="Resolution in pixels",
        ),
    ] = 0
    precision: Annotated[
        AutoPrecision,
        Help("Arithmetic of the forward passes. The adapter itself stays in fp32."),
    ] = AUTO
    quantization: Annotated[
        Quantization,
        Help(
            "Numbers in which the denoiser's frozen linear layers are held during the run: less "
            "memory, slower. int8 and nf4 need bitsandbytes. The export is made from the true "
            "weights."
        ),
    ] = "none"
    gradient_checkpointing: Annotated[
        bool,
        Help("Needs less memory, and about a third more time.", label="Less memory, more time"),
    ] = False
    users_at_once: Annotated[
        int | Auto,
        Range(1, 64),
        Help(
            "Simulated users of an outer step that share a pass: quicker, for the memory of so "
            'many batches. Needs simulate = "shared" and micro_batch = 0. auto: all, if the free '
            "memory of the GPU suffices; one on other devices."
        ),
    ] = AUTO
    micro_batch: Annotated[
        int | Auto,
        Range(0, 4096),
        Help(
            "Images in one pass; their gradients are added up: less memory, and the same "
            "result up to rounding; 0: whole batches. auto: as many as the free memory of the GPU "
            "allows; whole batches on other devices.",
            label="Micro-batch: pictures at once",
        ),
    ] = AUTO
    skip_broken_images: Annotated[
        bool, Help("Leave out images that cannot be read, instead of stopping with a list of them.")
    ] = False
    save_every: Annotated[
        int, Range(1, 1_000_000), Help("Outer steps between two saved states.")
    ] = 5
    seed: Annotated[
        int,
        Range(0, 2**63 - 1),
        Help("Seed of all random choices; on a CPU the same seed gives the same bytes."),
    ] = 0

    def __post_init__(self, concept: Concept | None) -> None:
        concepts = tuple(self.concepts) + ((concept,) if isinstance(concept, Concept) else ())
        object.__setattr__(self, "concepts", concepts)
        freeze_lists(self)
        if self.method in FACTS and FACTS[self.method].single_step:
            object.__setattr__(self, "outer_steps", 1)
            object.__setattr__(self, "warm_up_steps", 0)
        if not self.concepts:
            raise ConfigError("plan: name at least one concept to remove")
        check_fields(self, "plan")
        check_distinct("plan", "concept entries", (item.name for item in self.concepts))
        check_distinct("plan", "fine-tuning entries", (item.name for item in self.fine_tunes))
        check_quantization(self)
        pool = len(self.fine_tunes)
        if pool and self.configurations_per_step > pool:
            raise ConfigError(
                f"plan: configurations_per_step is {self.configurations_per_step}, but only "
                f"{pool} fine-tuning configurations are given; they are drawn without replacement"
            )
        together = self.users_at_once not in (AUTO, 1)
        if together and (self.simulate != "shared" or self.micro_batch not in (AUTO, 0)):
            raise ConfigError(
                f"plan: users_at_once is {self.users_at_once}; users share passes only with "
                'simulate = "shared" and whole batches (micro_batch = 0)'
            )

    @property
    def resilience_steps(self) -> int:
        """Outer steps after the warm-up."""
        return self.outer_steps - self.warm_up_steps
