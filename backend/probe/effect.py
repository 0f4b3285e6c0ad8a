"""Finds attacks that change next to nothing: they say nothing about a model's resilience.

An attack is judged by what it does to the *original*, which has no defence: how far its harmless
pictures move, and how far its predictions on the retain set do. If both stay below
`counting.least_effect` at every step, the attack had no effect (a learning rate of 0, or an
optimiser that has not found its rate yet), and it counts for no model. An attack that moves the
original and not a hardened model counts: that is what resilience means.

Merges with the original leave the original as it is, so they are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..plan.attack import ORIGINAL, Attack, MergeAttack
from .results import Evaluation, ProbeResult
from .summary import Effect
from .utility_figures import DRIFT, IMAGE_DISTANCE

_COMPARED = ("retain", "neighbour")  # sets whose pictures are compared with the original's


def measure_effects(result: ProbeResult) -> tuple[Effect, ...]:
    """Return what each attack changed on the original, for those that can be judged."""
    original = result.models[0].name
    before = result.evaluation(original)
    if before is None:
        return ()
    found = []
    for attack in result.plan.attacks:
        after = result.evaluations_of(original, attack.name)
        if after and not _mixes_with_itself(attack):
            found.append(_effect(attack.name, before, after, result.plan.counting.least_effect))
    return tuple(found)


def _effect(attack: str, before: Evaluation, after: Sequence[Evaluation], least: float) -> Effect:
    distances = [
        value
        for each in after
        for kind in _COMPARED
        if (value := each.utility.get(IMAGE_DISTANCE.key_of(kind))) is not None
    ]
    drifts = [each.utility[DRIFT.key] for each in after if DRIFT.key in each.utility]
    pictures, drift = _largest(distances), _largest(drifts)
    predictions = None if drift is None else math.sqrt(max(drift, 0.0))
    measured = [value for value in (pictures, predictions) if value is not None]
    unchanged = all(_same_pictures(before, each) for each in after)
    if measured or not least:
        had_effect: bool | None = max(measured, default=0.0) >= least
    else:
        had_effect = False if unchanged else None
    return Effect(
        attack=attack, pictures=pictures, predictions=predictions, unchanged=unchanged,
        had_effect=had_effect,
    )  # fmt: skip


def _same_pictures(one: Evaluation, other: Evaluation) -> bool:
    """Return True if all pictures are there and the same, bit for bit."""
    pairs = [(part, other.set_of(part.kind)) for part in one.sets if part.digests]
    return bool(pairs) and all(
        part.digests == match.digests if match else False for part, match in pairs
    )


def _largest(values: Iterable[float]) -> float | None:
    return max((value for value in values if math.isfinite(value)), default=None)


def _mixes_with_itself(attack: Attack) -> bool:
    return isinstance(attack, MergeAttack) and attack.other == ORIGINAL
