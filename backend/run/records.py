"""What each outer step did, in figures, as a value that round-trips through JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..bilevel.simulate import SimulatedUser


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationRecord:
    """One simulated user of one outer step.

    steps: inner steps taken. move: L2 length of the weight move. q: L_harm(θ*) / L_harm(θ),
    what is left of the harm loss (1: no relapse). residual, curvature (≥ γ‖H‖ / its lower
    bound) and products are the solve's; None for first order. skipped: why a solve failed and
    the first-order gradient was used, or empty. retain_after: L_retain(θ*), where the plan's
    retain_after_weight asks for it.
    """

    name: str
    steps: int
    harm_after: float
    q: float
    move: float
    first_loss: float
    last_loss: float
    residual: float | None = None
    curvature: float | None = None
    retain_after: float | None = None
    products: int = 0
    skipped: str = ""

    @staticmethod
    def of(user: SimulatedUser, q: float) -> SimulationRecord:
        solution, kept = user.result.solution, user.result.retain_after
        return SimulationRecord(
            name=user.fine_tune.name,
            steps=user.run.steps,
            harm_after=float(user.result.harm_after),
            q=q,
            move=float(user.run.move),
            first_loss=float(user.run.first_loss),
            last_loss=float(user.run.last_loss),
            residual=solution.residual if solution else None,
            curvature=solution.curvature if solution else None,
            retain_after=None if kept is None else float(kept),
            products=solution.products if solution else 0,
            skipped=user.result.skipped,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One outer step: losses at θ before its update, weights, gradient norm before clipping."""

    step: int
    harm: float
    retain: float
    resilience_weight: float
    retain_weight: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    simulations: tuple[SimulationRecord, ...] = ()

    @property
    def q(self) -> float | None:
        """Mean of the simulated users' q; None in the warm-up."""
        return _mean([s.q for s in self.simulations])

    @property
    def harm_after(self) -> float | None:
        """Mean of L_harm(θ*); None in the warm-up."""
        return _mean([s.harm_after for s in self.simulations])

    @property
    def skipped(self) -> int:
        """Solves that failed and were replaced by the first-order gradient."""
        return sum(bool(s.skipped) for s in self.simulations)

    def values(self) -> dict[str, float]:
        """The figures worth a live line."""
        figures: dict[str, float | None] = {
            "harm": self.harm,
            "harm_after": self.harm_after,
            "q": self.q,
            "retain": self.retain,
            "residual": _mean([s.residual for s in self.simulations if s.residual is not None]),
            "inner_steps": _mean([float(s.steps) for s in self.simulations]),
            "skipped": float(self.skipped) if self.skipped else None,
        }
        return {name: value for name, value in figures.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> StepRecord:
        simulations = tuple(SimulationRecord(**s) for s in record["simulations"])
        return StepRecord(**{**record, "simulations": simulations})


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
