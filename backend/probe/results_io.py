"""Reads a probe's results from its folder, and puts evaluations together to a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..checkpoint.metadata import versions
from ..errors import RunError
from ..plan.methods import TEST_RUN, names_test_run
from ..plan.probe import BEFORE, ProbePlan, too_short
from ..progress import Progress
from .audit import read_audit
from .folder import EVALUATIONS, PLAN, Requests, read_evaluations, read_plan, read_requests
from .results import CONCEPT, LEARNING, WEIGHTS, Evaluation, Key, ModelInfo, ProbeResult
from .tasks import plan_tasks


def read_probe(folder: Path | str) -> ProbeResult:
    """Read what a probe's folder holds so far; works while the probe runs."""
    plan, models = read_plan(folder)
    evaluations = read_evaluations(Path(folder))
    result = assemble_result(plan, models, evaluations, read_requests(folder))
    audit = read_audit(Path(folder))
    return replace(result, audit=audit) if audit is not None and audit.labelled else result


def curve_points(evaluation: Evaluation) -> dict[str, float]:
    """Return the point that an evaluation adds to each live curve, by the curve's name."""
    points = dict(evaluation.utility)
    for part in evaluation.sets:
        for scores in part.scores if part.kind != LEARNING else ():
            name = "recovered" if part.kind == CONCEPT else part.kind
            points[f"{name} ({scores.scorer})"] = scores.hits / max(1, part.images)
    return points


def kept_points(folder: Path) -> list[Progress]:
    """Return the points of the live curves that a probe's folder holds; none where it has none."""
    if not ((folder / PLAN).is_file() and (folder / EVALUATIONS).is_file()):
        return []
    try:
        found = read_evaluations(folder)
    except RunError:  # beginning the probe reports it
        return []
    return [
        Progress(
            stage="probing", step=number, total=len(found), values=curve_points(each),
            labels=curve_labels(each.key),
        )
        for number, each in enumerate(found, start=1)
    ]  # fmt: skip


def curve_labels(key: Key) -> dict[str, str]:
    """Return what identifies the curve of an evaluation, and its place on it."""
    model, attack, seed, step = key
    return {"model": model, "attack": attack, "seed": str(seed), "at": str(step)}


def assemble_result(
    plan: ProbePlan,
    models: Sequence[ModelInfo],
    evaluations: Sequence[Evaluation],
    requests: Requests,
) -> ProbeResult:
    """Return a result with its evaluations sorted in the order of models and attacks."""
    order = {model.name: place for place, model in enumerate(models)}
    attacks = {BEFORE: -1} | {attack.name: place for place, attack in enumerate(plan.attacks)}
    wanted = sum(len(task.keys) for task in plan_tasks(plan, [model.name for model in models]))
    evaluations = [e for e in evaluations if e.model in order and e.attack in attacks]
    drawn = {part.kind for evaluation in evaluations for part in evaluation.sets}
    return ProbeResult(
        plan=plan,
        models=tuple(models),
        evaluations=tuple(
            sorted(evaluations, key=lambda e: (order[e.model], attacks[e.attack], e.seed, e.step))
        ),
        prompts={
            kind: tuple(request.text for request in part)
            for kind, part in requests.items()
            if kind in drawn
        },
        complete=len(evaluations) == wanted,
        versions=versions(),
        warnings=(*same_models(models), *by_test_runs(models), *by_short_probe(plan)),
    )


def same_models(models: Sequence[ModelInfo]) -> tuple[str, ...]:
    """Return a warning for each model with the weights of an earlier one; it shows no hardening."""
    found, seen = [], dict[str, str]()
    for model in models:
        weights = model.method if model.method.startswith(WEIGHTS) else model.sha256
        if weights and weights in seen:
            found.append(
                f"{seen[weights]} and {model.name} are the same model: the probe compares it with "
                "itself (is Harden Model bypassed, or the same file chosen twice?)"
            )
        seen.setdefault(weights, model.name)
    return tuple(found)


def by_test_runs(models: Sequence[ModelInfo]) -> tuple[str, ...]:
    """Return a warning for each model that a test run hardened."""
    return tuple(by_test_run(model.name) for model in models if names_test_run(model.method))


def by_short_probe(plan: ProbePlan) -> tuple[str, ...]:
    """Return the warning of a probe that is itself a test run, or a quick look."""
    said = too_short(plan)
    return (said,) if said else ()


def by_test_run(model: str) -> str:
    """Return the warning for a model that a test run hardened."""
    return f"{model} comes from {TEST_RUN}"
