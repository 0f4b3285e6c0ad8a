"""Presets for a model family: where a preset leaves the guidance at a plan's default, which is
Stable Diffusion's, images are drawn with the guidance that the family's models are meant for.

Front ends use this where they build a plan from a preset. A plan file is taken as it is written;
`check` warns of a guidance that does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ResAlignError
from ..families import Family
from ..plan.durable import VariedConfig
from ..plan.field import field_of
from ..plan.hardening import HardeningPlan
from ..plan.images import ImageSet
from ..plan.measurement import GenerationConfig
from ..plan.methods import changes_all_weights
from ..plan.probe import ProbePlan

P = TypeVar("P", HardeningPlan, ProbePlan)
_DEFAULTS = {
    kind: field_of(kind, "guidance").default for kind in (ImageSet, GenerationConfig, VariedConfig)
}


def drawn_as(family: Family | None, plan: P) -> P:
    """Return a preset's plan with the guidance of a family; unchanged where it has none of its
    own."""
    if family is None or family.guidance is None:
        return plan
    low, high = family.guidance

    def own(part: Any) -> Any:
        if part is None or part.guidance != _DEFAULTS[type(part)]:
            return part
        return part if low <= part.guidance <= high else replace(part, guidance=low)

    changes: dict[str, Any] = {
        "concepts": tuple(replace(one, images=own(one.images)) for one in plan.concepts),
        "forget_set": own(plan.forget_set),
        "retain_set": own(plan.retain_set),
    }
    if isinstance(plan, HardeningPlan):
        changes["varied"] = own(plan.varied)
    else:
        changes["generation"] = own(plan.generation)
    return replace(plan, **changes)


def guidance_doubts(plan: HardeningPlan | ProbePlan, family: Family) -> list[str]:
    """Warn of images that a plan draws with a guidance outside of what a family is meant for."""
    strange = [
        f"{name} has guidance {value:g}"
        for name, value in _drawn(plan).items()
        if not _fits(value, family)
    ]
    return [f"{' and '.join(strange)}: {_meant(family)}"] if strange else []


def guidance_doubt(family: Family | None, guidance: float) -> str:
    """Warn of pictures drawn with a guidance outside of what a family is meant for; empty where it
    fits, or nothing is known."""
    if family is None or _fits(guidance, family):
        return ""
    return f"Warning: the guidance is {guidance:g}; {_meant(family)}"


def _fits(guidance: float, family: Family) -> bool:
    return family.guidance is None or family.guidance[0] - 1 <= guidance <= family.guidance[1] + 1


def _meant(family: Family) -> str:
    low, high = family.guidance or (0, 0)
    return f"{family.title} is drawn with guidance {low:g} to {high:g}"


def _drawn(plan: HardeningPlan | ProbePlan) -> dict[str, float]:
    """Return the guidance of whatever the plan draws."""
    sets = {
        **{f"images of {c.name}": c.images or plan.forget_set for c in plan.concepts},
        "retain_set": plan.retain_set,
    }
    drawn = {name: found.guidance for name, found in sets.items() if found and found.prompts}
    if isinstance(plan, ProbePlan):
        drawn["generation"] = plan.generation.guidance
    elif changes_all_weights(plan) and plan.varied.images and plan.varied.guidance > 1:
        drawn["varied"] = plan.varied.guidance
    return drawn


def family_at(
    path: str | Path, *, prediction: str = "", parts: Mapping[str, str] | None = None
) -> Family | None:
    """Return the family of a checkpoint, or of the one that a run hardened; None where it cannot be
    recognised, which whoever uses the file next explains."""
    from ..checkpoint.detect import detect_denoiser

    try:
        if (Path(path) / "plan.json").is_file():
            from ..run.folder import RunFolder  # needs torch, which a host's tab may lack

            job = RunFolder.open(path, read_only=True).job
            path, prediction, parts = (
                (job.checkpoint, job.prediction, job.parts) if job else (path, prediction, parts)
            )
        return detect_denoiser(path, prediction=prediction, parts=parts).family
    except ResAlignError:
        return None
