"""Adjusts the length of each simulated user's run, so that it is neither harmless nor unbeatable.

q = L_harm(θ*) / L_harm(θ) is the share of the harm loss that a simulated run leaves. A user who
brings nothing back (q near 1) teaches nothing, and one who brings everything back cannot be
hardened against. So each configuration's runs grow by a factor where q > high and shrink where
q < low. On a small model this was the one change that made hardening hold at matched utility
(docs/method.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..plan.fine_tune import FineTuneConfig
from ..plan.regulator import RegulatorConfig


@dataclass(slots=True)
class Regulator:
    """The current inner steps of each configuration; the state is plain numbers by name."""

    config: RegulatorConfig
    lengths: dict[str, float] = field(default_factory=dict)
    idle: dict[str, int] = field(default_factory=dict)

    def steps(self, fine_tune: FineTuneConfig) -> int:
        """Return the inner steps that the configuration takes now."""
        if not self.config.enabled:
            return fine_tune.steps
        return round(self._length(fine_tune))

    def update(self, fine_tune: FineTuneConfig, q: float) -> str:
        """Adjust the length by q; return a warning, or an empty text."""
        length = self._length(fine_tune)
        if self.config.enabled and q > self.config.high:
            length *= self.config.factor
        elif self.config.enabled and q < self.config.low:
            length /= self.config.factor
        bounds = (self.config.min_steps, self.config.max_steps)
        self.lengths[fine_tune.name] = min(max(length, bounds[0]), bounds[1])
        at_limit = not self.config.enabled or round(length) >= self.config.max_steps
        idle = self.idle.get(fine_tune.name, 0) + 1 if q > self.config.high and at_limit else 0
        self.idle[fine_tune.name] = idle
        if idle == 0 or idle % self.config.patience:
            return ""
        return (
            f"simulated user {fine_tune.name} has not relapsed in {idle} of its runs (q {q:.2f}): "
            "there is nothing to harden against; raise its learning_rate, its concept_share, or "
            + ("regulator.max_steps" if self.config.enabled else "its steps")
        )

    def _length(self, fine_tune: FineTuneConfig) -> float:
        start = min(max(fine_tune.steps, self.config.min_steps), self.config.max_steps)
        return self.lengths.get(fine_tune.name, float(start))

    def state(self) -> dict[str, dict[str, float]]:
        """Return what `restore` needs, as JSON holds it."""
        return {"lengths": dict(self.lengths), "idle": {k: float(v) for k, v in self.idle.items()}}

    def restore(self, state: dict[str, dict[str, float]]) -> None:
        self.lengths = dict(state["lengths"])
        self.idle = {name: int(count) for name, count in state["idle"].items()}
