"""What a probe's looks come to: points of the curves while it runs, and the result as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.metadata import versions
from ..plan.attack import FineTuneAttack
from ..plan.probe import BEFORE, ProbePlan
from .evaluation import CONCEPT
from .folder import Requests, read_looks, read_plan, read_requests
from .prompts import expand, load_prompts
from .results import Look, ModelInfo, ProbeResult


def read_probe(folder: Path | str) -> ProbeResult:
    """What a probe's folder holds so far; works while the probe is under way."""
    plan, models = read_plan(folder)
    return result_of(plan, models, read_looks(Path(folder)), read_requests(folder))


def requests_of(plan: ProbePlan) -> Requests:
    """Every image that a look draws, by kind of prompt."""
    found = {}
    for part in plan.prompts:
        prompts = load_prompts(part, plan.concepts)
        if prompts:
            found[part.kind] = tuple(expand(prompts, part.images, plan.generation.seed))
    return found


def figures_of(look: Look) -> dict[str, float]:
    """The point that a look adds to the curves."""
    figures = dict(look.utility)
    for part in look.sets:
        for scores in part.scores:
            name = "recovered" if part.kind == CONCEPT else part.kind
            figures[f"{name} ({scores.scorer})"] = scores.hits / max(1, part.images)
    return figures


def result_of(
    plan: ProbePlan,
    models: Sequence[ModelInfo],
    looks: Sequence[Look],
    requests: Requests,
) -> ProbeResult:
    """Looks in the order of models and attacks, whatever order they were made in."""
    order = {model.name: place for place, model in enumerate(models)}
    attacks = {BEFORE: -1} | {attack.name: place for place, attack in enumerate(plan.attacks)}
    wanted = sum(
        1 if not isinstance(attack, FineTuneAttack) else len(plan.seeds) * len(attack.looks)
        for attack in plan.attacks
    ) + 1  # fmt: skip
    drawn = {part.kind for look in looks for part in look.sets}
    return ProbeResult(
        plan=plan,
        models=tuple(models),
        looks=tuple(
            sorted(looks, key=lambda k: (order[k.model], attacks[k.attack], k.seed, k.step))
        ),
        prompts={
            kind: tuple(request.text for request in part)
            for kind, part in requests.items()
            if kind in drawn
        },
        complete=len(looks) == wanted * len(models),
        versions=versions(),
    )
