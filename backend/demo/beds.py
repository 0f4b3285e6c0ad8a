"""The embedded checkpoints, and the settings that suit each.

Both draw the same pictures and answer the same prompts. `UNET` has the architecture of Stable
Diffusion; `DIT` is a flow-matching transformer. Learning rates were chosen with seed 0 on `UNET`;
`DIT` takes them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ConfigError
from ..plan.adapter import Target
from ..plan.durable import DistilConfig
from ..plan.fine_tune import FineTuneConfig
from .art import ASSETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Bed:
    """An embedded checkpoint with its settings.

    family: its name for `resalign demo --family`. targets: modules with adapters. learning_rate:
    of plain unlearning, and of ResAlign up to its end. user_learning_rate: of the users that
    ResAlign simulates. attack: what the demo fine-tunes with.
    """

    family: str
    checkpoint: Path
    targets: tuple[Target, ...]
    learning_rate: float
    final_learning_rate: float
    user_learning_rate: float
    retain_weight: float
    distil: DistilConfig
    attack: FineTuneConfig

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer, for a family that has none of its own."""
        return self.checkpoint.parent / "tokenizer"


UNET = Bed(
    family="sd",
    checkpoint=ASSETS / "demo_sd.safetensors",
    targets=("attention", "feed_forward", "convolution"),
    learning_rate=8e-3,
    final_learning_rate=2e-3,
    user_learning_rate=1e-2,
    retain_weight=14.0,
    # The demo's networks are small: real ones take a learning rate of 1e-5
    distil=DistilConfig(learning_rate=1.5e-3, towards="anchor"),
    attack=FineTuneConfig(
        name="LoRA, 20 % harmful", data="attack", learning_rate=5e-3, steps=50, batch=16, rank=8,
        concept_share=0.2,
    ),
)  # fmt: skip

DIT = replace(
    UNET,
    family="dit",
    checkpoint=ASSETS / "dit" / "demo_dit_base.safetensors",
    targets=("attention", "feed_forward"),
)

BEDS = {bed.family: bed for bed in (UNET, DIT)}


def find_bed(family: str) -> Bed:
    """Return the embedded checkpoint of a family; a ConfigError names those that there are."""
    if family not in BEDS:
        raise ConfigError(f"the demo has no family {family!r}, only {', '.join(BEDS)}")
    return BEDS[family]
