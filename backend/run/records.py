"""Records of outer steps: figures that round-trip through JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import RunError
from ..text import typed


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationRecord:
    """Figures of one simulated user in one outer step.

    steps: inner steps taken. move: L2 length of the weight move. q: L_harm(θ*) / L_harm(θ), the
    share of the harm loss that is left (1: no relapse). residual, curvature (a lower bound of
    γ‖H‖) and products: of the solve; None and 0 for first order. skipped: why a solve failed and
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasedLayer:
    """Record of what a closed-form erasure took out of one layer.

    width: of its input. removed: directions. strongest: the largest λ, how many times stronger a
    direction is on the concepts than on what must stay; weakest: the smallest λ that was removed,
    None where nothing was.
    """

    name: str
    width: int
    removed: int
    strongest: float
    weakest: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """An outer step: losses at θ before its update, weights, gradient norm before clipping.

    An erasure has its losses after it, and `erased`, which other steps do not have.
    """

    step: int
    harm: float
    retain: float
    resilience_weight: float
    retain_weight: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    simulations: tuple[SimulationRecord, ...] = ()
    erased: tuple[ErasedLayer, ...] = ()

    @property
    def q(self) -> float | None:
        """Return the mean of the simulated users' q; None in the warm-up."""
        return _mean([s.q for s in self.simulations])

    @property
    def harm_after(self) -> float | None:
        """Return the mean of L_harm(θ*); None in the warm-up."""
        return _mean([s.harm_after for s in self.simulations])

    @property
    def skipped(self) -> int:
        """Return the number of failed solves, replaced by the first-order gradient."""
        return sum(bool(s.skipped) for s in self.simulations)

    def values(self) -> dict[str, float]:
        """Return the figures for a live display."""
        figures: dict[str, float | None] = {
            "harm": self.harm,
            "harm_after": self.harm_after,
            "q": self.q,
            "retain": self.retain,
            "residual": _mean([s.residual for s in self.simulations if s.residual is not None]),
            "inner_steps": _mean([float(s.steps) for s in self.simulations]),
            "skipped": float(self.skipped) if self.skipped else None,
            "erased": float(sum(e.removed for e in self.erased)) if self.erased else None,
        }
        return {name: value for name, value in figures.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        if not self.erased:
            del record["erased"]
        return record

    @staticmethod
    def from_json(record: dict[str, Any]) -> StepRecord:
        try:
            for name in ("simulations", "erased"):
                typed.entries(record.get(name, ()), name)
            simulations = tuple(SimulationRecord(**s) for s in record["simulations"])
            erased = tuple(ErasedLayer(**e) for e in record.get("erased", ()))
            found = StepRecord(**{**record, "simulations": simulations, "erased": erased})
            for part in (found, *simulations, *erased):
                _check_types(part)
            return found
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise RunError(f"a step's record was written by another version: {error}") from None


_COUNTS, _TEXTS = ("step", "steps", "products", "width", "removed"), ("name", "skipped")


def _check_types(part: StepRecord | SimulationRecord | ErasedLayer) -> None:
    """Raise a TypeError or ValueError for a field of another type; figures may be null (NaN)."""
    for field in fields(part):
        value = getattr(part, field.name)
        if field.name in ("simulations", "erased") or value is None:
            continue
        check = typed.text if field.name in _TEXTS else typed.figure
        (typed.count if field.name in _COUNTS else check)(value, field.name)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
