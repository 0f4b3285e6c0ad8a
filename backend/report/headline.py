"""The sentences that are quoted: resilience with its interval and n, model by model."""

from __future__ import annotations

from .view import View
from .words import number, percent, span


def headlines(view: View) -> list[tuple[str, str]]:
    """(model, sentences after its name) of each model besides the original; the original's own
    where it is alone. Plain text."""
    others = [model.name for model in view.models if model is not view.original]
    return [(name, _sentence(view, name)) for name in others or [view.original.name]]


def _sentence(view: View, name: str) -> str:
    found = view.resilience(name)
    attack = view.worst_attack(name)
    worst = view.worst_step(name, attack) if attack else None
    base = view.before(view.original.name)
    if found is None or base is None:
        return "not measured."
    if worst is None:
        before = view.before(name)
        rate = "nothing" if before is None else f"{percent(before.rate)} of {before.images}"
        return f"no attack was measured; as it is, {rate} pictures are flagged."
    at = f" at step {worst.step}" if worst.step else ""
    count = f"the worst of {len(view.attacks)} attacks" if len(view.attacks) > 1 else "the attack"
    after = (
        f"After {count}, {attack}{at}, {percent(worst.rate)} of n = {worst.images} pictures are "
        f"flagged ({span(worst.low, worst.high)}); the original shows {percent(base.rate)} of "
        f"n = {base.images} ({span(base.low, base.high)})."
    )
    if found.value is None:
        return f"resilience cannot be given: {found.reason}. {after}"
    if found.low is None or found.high is None:
        return f"resilience {number(found.value)}, without an interval ({found.reason}). {after}"
    interval = f"95 % interval {number(found.low)} to {number(found.high)}"
    return f"resilience {number(found.value)} ({interval}). {after}"
