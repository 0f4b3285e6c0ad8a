"""The plans that the demo and its benchmark compare, and the data they use.

All data are rendered from the sprites: forget (weapons), retain and inner (other classes,
different pictures), and for the attack pictures and seeds that hardening did not see. The
values were tuned on the demo with seed 0; docs/benchmarks.md lists what was tried.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..plan.adapter import AdapterConfig
from ..plan.concept import Concept
from ..plan.durable import VariedConfig
from ..plan.fine_tune import RETAIN, FineTuneConfig
from ..plan.hardening import HardeningPlan
from ..plan.harm import HarmConfig
from ..plan.images import ImageSet
from ..plan.methods import FACTS
from ..plan.presets import plan_preset
from ..plan.probe import ProbePlan
from ..plan.regulator import RegulatorConfig
from .art import (
    BENIGN,
    HELD_OUT_STYLES,
    UNSAFE,
    evaluation_prompts,
    sample_specs,
    write_image_set,
)
from .beds import UNET, Bed

CHECKPOINT = UNET.checkpoint
WEAPON = "weapon"
RETAIN_AFTER = 8.0  # ν: what keeps a hardened model useful once others have fine-tuned it

ANCHOR = "a twemoji star on a blue background"  # what prompts for weapons then draw

VARIED = VariedConfig(
    images=384, lists=str(Path(__file__).parent / "assets" / "varied.toml"), sampling_steps=12,
    guidance=4.0,
)  # fmt: skip

BLADES = ("knife", "sword")  # one of two concepts where weapons are removed as two
HELD_OUT = BENIGN[::3]  # in no picture of the set "retain_some"

_SETS = {  # name: images, seed, classes, styles (None: the trained ones)
    "forget": (200, 1, UNSAFE, None),
    "retain": (400, 2, BENIGN, None),
    "retain_some": (400, 2, tuple(c for c in BENIGN if c not in HELD_OUT), None),
    "inner": (300, 3, BENIGN, None),
    "attack": (300, 4, BENIGN, None),
    "attack_concept": (150, 5, UNSAFE, None),
    "new_style": (300, 6, BENIGN, HELD_OUT_STYLES),
    "forget_blades": (100, 7, BLADES, None),
    "forget_guns": (100, 8, tuple(c for c in UNSAFE if c not in BLADES), None),
}


def write_data(folder: Path, names: tuple[str, ...] = tuple(_SETS)) -> dict[str, Path]:
    """Render the image sets with kohya captions under `folder`; keep those already there."""
    paths = {}
    for name in names:
        images, seed, classes, styles = _SETS[name]
        paths[name] = folder / name
        done = folder / f".{name}.complete"  # not in the set, where it would be named as left out
        if not done.exists():
            specs = sample_specs(images, seed, classes, *([styles] if styles else []))
            write_image_set(paths[name], specs, seed)
            done.touch()
    return paths


def plain_plan(
    data: dict[str, Path], *, seed: int = 0, steps: int = 120, bed: Bed = UNET
) -> HardeningPlan:
    """Return the plan of plain unlearning: saturated ascent and retention, no simulated user."""
    return HardeningPlan(
        concepts=(Concept(WEAPON, images=ImageSet(folder=str(data["forget"]))),),
        retain_set=ImageSet(folder=str(data["retain"])),
        adapter=AdapterConfig(rank=4, targets=bed.targets),
        harm=HarmConfig(loss="ascent", cap=0.5),
        outer_steps=steps,
        warm_up_steps=steps,
        learning_rate=bed.learning_rate,
        weight_decay=0.0,
        forget_batch=8,
        retain_batch=12,
        retain_weight=bed.retain_weight,
        caption_dropout=0.1,
        save_every=20,
        seed=seed,
    )


def resalign_plan(
    data: dict[str, Path],
    *,
    seed: int = 0,
    warm_up: int = 60,
    steps: int = 120,
    bed: Bed = UNET,
) -> HardeningPlan:
    """Return the plan with a simulated user after the warm-up, its strength regulated."""
    user = FineTuneConfig(
        name="user", data=str(data["inner"]), learning_rate=bed.user_learning_rate, steps=6,
        batch=4, rank=8, concept_share=0.25,
    )  # fmt: skip
    return replace(
        plain_plan(data, seed=seed, steps=steps, bed=bed),
        fine_tunes=(user,),
        warm_up_steps=warm_up,
        final_learning_rate=bed.final_learning_rate,
        simulate="shared",
        resilience_weight=0.6,
        retain_after_weight=RETAIN_AFTER,
        regulator=RegulatorConfig(low=0.6, high=0.8, min_steps=4, max_steps=12),
    )


def durable_plan(plan: HardeningPlan, preset: str = "durable", *, bed: Bed = UNET) -> HardeningPlan:
    """Return a plan of the demo with the fields of a preset that trains all weights, at the demo's
    learning rate."""
    fields = plan_preset(preset).fields
    simulates = FACTS[fields.get("method", "resalign")].simulates_users
    users = plan.fine_tunes if simulates else ()
    distil = replace(
        fields["distil"], learning_rate=bed.distil.learning_rate, towards=bed.distil.towards
    )
    changes = {**fields, "fine_tunes": users, "distil": distil, "varied": VARIED}
    changes["concepts"] = tuple(replace(each, anchor=ANCHOR) for each in plan.concepts)
    return replace(plan, **changes)


def prompted_plan(*, seed: int = 0, warm_up: int = 60, steps: int = 120) -> HardeningPlan:
    """Return the plan without image folders: sets are generated from the demo's captions."""
    weapons = tuple(prompt for prompt, _ in evaluation_prompts(UNSAFE, 8, 1))
    others = tuple(prompt for prompt, _ in evaluation_prompts(BENIGN, 4, 2))
    plan = resalign_plan({"forget": Path(), "retain": Path(), "inner": Path()}, seed=seed,
                         warm_up=warm_up, steps=steps)  # fmt: skip
    generated = ImageSet(prompts=weapons, images=len(weapons), sampling_steps=15)
    return replace(
        plan,
        concepts=(Concept(WEAPON, weapons, images=generated),),
        retain_set=ImageSet(prompts=others, images=len(others), sampling_steps=15),
        fine_tunes=tuple(replace(user, data=RETAIN) for user in plan.fine_tunes),
        save_every=5,
    )


def demo_probe(plan: ProbePlan) -> ProbePlan:
    """Return a probe's plan with the demo's own prompts: it knows no others, and no neighbours."""
    asked = {
        "unsafe": evaluation_prompts(UNSAFE, 12, 1),
        "retain": evaluation_prompts(BENIGN, 2, 1),
    }
    own = {kind: tuple(dict.fromkeys(text for text, _ in pairs)) for kind, pairs in asked.items()}
    prompts = tuple(
        replace(part, file="", extended=False, prompts=own[part.kind])
        for part in plan.prompts
        if part.kind in own
    )
    if not plan.test_run:
        return replace(plan, prompts=prompts)
    # The rate of a real checkpoint's LoRA changes next to nothing on this one in so few steps
    rate = UNET.attack.learning_rate
    faster = tuple(replace(each, learning_rate=rate) for each in plan.fine_tunes)
    return replace(plan, prompts=prompts, fine_tunes=faster)
