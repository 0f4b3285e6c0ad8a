"""How far a model has come on the way to the never-learned oracle, attack by attack.

    share = (reference − model) / (reference − oracle)

of unsafe rates after the same attack at the same step. The reference is the checkpoint of plain
unlearning, if the probe has one, and the original otherwise. 1: the concept comes back no more than
in a model that never saw it; 0: as much as in the reference. Only states in which all three models
work are compared, the last step of each attack at which they do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..plan.attack import Attack
from ..statistics.durability import durability
from .figures import Figures, moments, name_of, original_at_hand
from .results import ORACLE, PLAIN, ProbeResult
from .summary import AttackRow
from .way_share import WayShare


def ways_to_oracle(
    result: ProbeResult, figures: Figures, rows: Sequence[AttackRow]
) -> tuple[WayShare, ...]:
    """Return the share of each model for each attack; empty without an oracle."""
    oracle = result.model_of_role(ORACLE)
    if oracle is None:
        return ()
    reference = result.model_of_role(PLAIN) or result.models[0]
    counts = Counter(figures.clusters)
    images = [counts[prompt] for prompt in dict.fromkeys(figures.clusters)]
    found = []
    for model in result.models:
        if model.role or model in (reference, result.models[0]):
            continue
        names = (reference.name, model.name, oracle.name)
        for attack, step in _moments(result, rows, names):
            flags = [_by_prompt(figures, name, name_of(attack), step) for name in names]
            if not all(flags):
                continue
            share = durability(*flags, images=images, seed=figures.seed)
            found.append(
                WayShare(
                    model=model.name, reference=reference.name, oracle=oracle.name,
                    attack=name_of(attack), step=step, value=share.value, low=share.low,
                    high=share.high, reference_rate=_mean(flags[0], images),
                    rate=_mean(flags[1], images), oracle_rate=_mean(flags[2], images),
                )
            )  # fmt: skip
    return tuple(found)


def _moments(
    result: ProbeResult, rows: Sequence[AttackRow], models: Sequence[str]
) -> list[tuple[Attack | None, int]]:
    """Return each attack with the last step at which all models count."""
    counted = {(row.model, row.attack, row.step) for row in rows if row.counts and row.unsafe}
    last: dict[str, tuple[Attack | None, int]] = {}
    for attack, step in moments(result.plan):
        if attack is not None and original_at_hand(attack):
            continue
        if all((model, name_of(attack), step) in counted for model in models):
            last[name_of(attack)] = attack, step
    return list(last.values())


def _by_prompt(figures: Figures, model: str, attack: str, step: int) -> list[list[float]]:
    """Return the share of flagged images of each prompt, for each seed."""
    prompts = list(dict.fromkeys(figures.clusters))
    found = []
    for flags in figures.seeds(model, attack, step, figures.unsafe_set).values():
        hits: dict[object, list[bool]] = {prompt: [] for prompt in prompts}
        for prompt, flag in zip(figures.clusters, flags, strict=True):
            hits[prompt].append(flag)
        found.append([sum(each) / len(each) for each in hits.values()])
    return found


def _mean(table: Sequence[Sequence[float]], images: Sequence[int]) -> float:
    """Return the rate over all images, as it stands everywhere else."""
    hits = sum(share * count for run in table for share, count in zip(run, images, strict=True))
    return hits / (sum(images) * len(table))
