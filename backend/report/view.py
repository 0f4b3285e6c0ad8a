"""Figures of a probe's summary, arranged for the parts of a report."""

from __future__ import annotations

from collections.abc import Iterator

from ..plan.attack import FineTuneAttack
from ..plan.probe import BEFORE
from ..plan.sweep import Sweep, swept_attacks
from ..probe.headline import headline
from ..probe.results import ModelInfo, ProbeResult
from ..probe.summarise import original_at_hand, summarise
from ..probe.summary import BROKEN, AttackRow, Comparison, ModelSummary, Quality, Rate, Relapse
from ..probe.verdict import of_model
from ..probe.worst_case import rate_of
from .curves import Curve
from .words import span


class View:
    """The figures of a result by names of models and attacks."""

    def __init__(self, result: ProbeResult) -> None:
        self.result = result
        self.summary = summarise(result)
        self.models = result.models
        self.original = result.models[0]
        self.scorer, self.kind = self.summary.scorer, self.summary.unsafe_set
        seen = {row.attack for row in self.summary.rows}
        attacks = [attack for attack in result.plan.attacks if attack.name in seen]
        self.attacks = tuple(attack.name for attack in attacks)
        self.curved = tuple(a.name for a in attacks if isinstance(a, FineTuneAttack))
        self.sweeps = tuple(sweep for sweep in result.plan.sweeps if _measured(sweep, seen))
        self.swept = {a.name for sweep in self.sweeps for a in swept_attacks(sweep)}
        self.with_original = {a.name for a in attacks if original_at_hand(a)}

    @property
    def images(self) -> int:
        """Images in each evaluation of the headline's set."""
        parts = (evaluation.set_of(self.kind) for evaluation in self.result.evaluations)
        return max((part.images for part in parts if part), default=0)

    @property
    def single(self) -> tuple[str, ...]:
        """Attacks that do not belong to a sweep."""
        return tuple(attack for attack in self.attacks if attack not in self.swept)

    def index(self, model: ModelInfo) -> int:
        return self.models.index(model)

    def sentences(self) -> list[str]:
        """The headline: one for each model, in plain text."""
        return headline(self.summary).splitlines()

    def verdict(self, model: str) -> tuple[str, str]:
        """Return the plain sentence on one model, and its kind; see `probe/verdict.py`."""
        return of_model(self.result, self.summary, model)

    def of(self, model: str) -> ModelSummary:
        return self.summary.model(model)

    def rows(self, model: str, attack: str) -> list[AttackRow]:
        """The steps of an attack at which the unsafe rate was measured, rising."""
        found = (r for r in self.summary.rows if (r.model, r.attack) == (model, attack))
        return sorted((row for row in found if row.unsafe), key=lambda row: row.step)

    def before(self, model: str) -> Rate | None:
        row = self.summary.row(model)
        return row.unsafe if row else None

    def peak(self, model: str, attack: str) -> AttackRow | None:
        """The step of an attack with the highest rate, the first of them: among the steps at which
        the model works, or if it never does, among all."""
        rows = self.rows(model, attack)
        working = [row for row in rows if row.state != BROKEN]
        return max(working or rows, key=rate_of, default=None)

    def broken(self, model: str, attack: str) -> AttackRow | None:
        """The step of an attack with the highest rate at which the model is broken."""
        rows = [row for row in self.rows(model, attack) if row.state == BROKEN]
        return max(rows, key=rate_of, default=None)

    def is_worst(self, model: str, attack: str) -> bool:
        """True for the one attack with the model's highest rate; a tie has none, nor has 0."""
        worst = self.of(model).worst
        rate = worst.row.unsafe if worst.row else None
        if worst.row is None or rate is None or not rate.flagged:
            return False
        return worst.row.attack == attack and not worst.tied

    def relapse(self, model: str, attack: str) -> Relapse | None:
        """The steps to relapse of one fine-tuning; None for the original, which has them all."""
        if model == self.original.name:
            return None
        return next((one for one in self.of(model).relapses if one.attack == attack), None)

    def counts(self, model: str, attack: str) -> bool:
        """True if the model works after the attack at one of its steps, and it had an effect."""
        return any(row.counts for row in self.rows(model, attack))

    def worst(self, model: str) -> AttackRow | None:
        """The worst case of the headline: attacks that need the original are not in it."""
        return self.of(model).worst.row

    def lowest_quality(self, model: str) -> AttackRow | None:
        """See `ProbeSummary.lowest_quality`."""
        return self.summary.lowest_quality(model)

    def tally(self, model: str) -> str:
        """Count the headline's attacks: `4 of 6 attacks count; 2 left the model broken`."""
        rows: dict[str, list[AttackRow]] = {}
        for attack in self.attacks:
            if attack not in self.with_original and (found := self.rows(model, attack)):
                rows[attack] = found
        counted = [attack for attack in rows if self.counts(model, attack)]
        weak = [attack for attack in rows if all(row.had_effect is False for row in rows[attack])]
        broken = len(rows) - len(counted) - len(weak)
        out = [f"{count} {why}" for count, why in (
            (broken, "left the model broken"),
            (len(weak), "too weak to change the original"),
        ) if count]  # fmt: skip
        verb = "count" if len(counted) != 1 else "counts"
        total = f"{len(rows)} attack{'s' * (len(rows) != 1)}"
        return f"{len(counted)} of {total} {verb}" + (f"; {', '.join(out)}" if out else "")

    def worst_overall(self) -> str | None:
        """The attack of the headline with the highest rate for any model but the original."""
        models = self.result.compared or self.models
        rows = [row for model in models if (row := self.worst(model.name))]
        return max(rows, key=rate_of).attack if rows else None

    def comparisons(self) -> Iterator[tuple[AttackRow, Comparison]]:
        """Compare each model with those before it, unattacked and at each attack's worst step.

        What does not count for one of the two (it is broken, or the attack had no effect) is left
        out.
        """
        for place, model in enumerate(self.models):
            earlier = {other.name for other in self.models[:place]}
            for attack in (BEFORE, *self.attacks):
                row = self.peak(model.name, attack)
                if row is None or not row.counts:
                    continue
                for comparison in row.against:
                    other = self.summary.row(comparison.other, attack, row.step)
                    if comparison.other in earlier and other is not None and other.counts:
                        yield row, comparison

    def primary(self) -> Iterator[tuple[AttackRow, Comparison]]:
        """Return the comparisons of each model at the step of its own worst rate."""
        for row, comparison in self.comparisons():
            worst = self.worst(row.model)
            if worst and (row.attack, row.step) == (worst.attack, worst.step):
                yield row, comparison

    def curves(self, attack: str) -> list[Curve]:
        """Return one curve per model, from before the attack to its last step."""
        found = []
        for index, model in enumerate(self.models):
            points = [*self.rows(model.name, BEFORE), *self.rows(model.name, attack)]
            rates = [row.unsafe for row in points if row.unsafe]
            qualities = [row.quality for row in points]
            if len(points) > 1:
                found.append(
                    Curve(
                        name=model.name,
                        index=index,
                        steps=tuple(row.step for row in points),
                        rates=tuple(rate.value for rate in rates),
                        lows=tuple(rate.low for rate in rates),
                        highs=tuple(rate.high for rate in rates),
                        qualities=tuple(found.share if found else None for found in qualities),
                        broken=tuple(row.state == BROKEN for row in points),
                        quality_lows=tuple(_end(found, "low") for found in qualities),
                        quality_highs=tuple(_end(found, "high") for found in qualities),
                    )
                )
        return found


def share_span(quality: Quality) -> str:
    """Format the interval of a quality's share and its n: `64.0 to 96.5 %, n = 16`."""
    low, high = _end(quality, "low"), _end(quality, "high")
    known = low is not None and high is not None
    return (f"{span(low, high)}, " if known else "") + f"n = {quality.images}"  # type: ignore[arg-type]


def _end(quality: Quality | None, name: str) -> float | None:
    """Return an end of a quality's interval, as a share of the original's like its value."""
    end = getattr(quality, name) if quality and quality.reference else None
    return None if end is None or quality is None else end / quality.reference


def _measured(sweep: Sweep, seen: set[str]) -> bool:
    return any(attack.name in seen for attack in swept_attacks(sweep))
