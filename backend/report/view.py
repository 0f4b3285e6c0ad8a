"""The figures of a report, computed from the looks once and read by every format."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

from ..intervals import wilson
from ..probe_config import BEFORE, FineTuneAttack
from ..probe_results import Look, ModelInfo, ProbeResult
from ..statistics import PairedTest, Resilience, paired_clusters, resilience
from .curves import Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Share of flagged images, over all seeds of one look, with its 95 % interval."""

    rate: float
    low: float
    high: float
    hits: int
    images: int
    step: int


class View:
    """Everything that a report shows of a result, by model and attack."""

    def __init__(self, result: ProbeResult) -> None:
        self.result = result
        self.original = result.models[0]
        self.models = result.models
        self.scorer, self.kind = _headline_set(result)

    @cached_property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks that were looked at, in the order of the plan."""
        seen = {look.attack for look in self.result.looks}
        return tuple(a.name for a in self.result.plan.attacks if a.name in seen)

    @cached_property
    def curved(self) -> tuple[str, ...]:
        """Attacks with more than one step to show."""
        runs = {a.name for a in self.result.plan.attacks if isinstance(a, FineTuneAttack)}
        return tuple(name for name in self.attacks if name in runs)

    @property
    def images(self) -> int:
        """Images in each look of the headline's set."""
        parts = (look.set_of(self.kind) for look in self.result.looks)
        return max((part.images for part in parts if part), default=0)

    def flags(self, look: Look) -> tuple[bool, ...] | None:
        part = look.set_of(self.kind)
        scores = part.scores_of(self.scorer) if part else None
        return scores.flagged if scores else None

    @lru_cache  # noqa: B019 - a view lives as long as one report
    def by_step(self, model: str, attack: str) -> tuple[Rate, ...]:
        """Rates at each step that was looked at, rising; empty where nothing was."""
        pooled: dict[int, list[bool]] = {}
        for look in self.result.looks_of(model, attack):
            if (flags := self.flags(look)) is not None:
                pooled.setdefault(look.step, []).extend(flags)
        rates = []
        for step, flags in sorted(pooled.items()):
            low, high = wilson(sum(flags), len(flags))
            rate = sum(flags) / max(1, len(flags))
            rates.append(Rate(rate=rate, low=low, high=high, hits=sum(flags), images=len(flags),
                              step=step))  # fmt: skip
        return tuple(rates)

    def before(self, model: str) -> Rate | None:
        return next(iter(self.by_step(model, BEFORE)), None)

    def worst_step(self, model: str, attack: str) -> Rate | None:
        """The look of an attack with the highest rate, the first of them."""
        return max(self.by_step(model, attack), key=lambda rate: rate.rate, default=None)

    def worst_attack(self, model: str) -> str | None:
        """The attack with the highest rate on a model."""
        found = [(name, rate) for name in self.attacks if (rate := self.worst_step(model, name))]
        return max(found, key=lambda pair: pair[1].rate)[0] if found else None

    @lru_cache  # noqa: B019
    def resilience(self, model: str) -> Resilience | None:
        """Resilience of a model against the original's rate before any attack."""
        base = self._before_flags(self.original.name)
        if base is None:
            return None
        after: dict[tuple[str, int], list[tuple[bool, ...]]] = {}
        for attack in self.attacks:
            for look in self.result.looks_of(model, attack):
                if (flags := self.flags(look)) is not None:
                    after.setdefault((attack, look.step), []).append(flags)
        return resilience(base, after, self.clusters(len(base)))

    def paired(self) -> list[tuple[str, str, PairedTest]]:
        """Comparisons on the same prompts and seeds: what is compared, under what, the test."""
        found = []
        original = self.original.name
        for model in (m.name for m in self.models if m.name != original):
            before, other = self._before_flags(model), self._before_flags(original)
            if before is not None and other is not None:
                found.append((f"{model} − {original}", BEFORE, self._test(before, other)))
            for attack in self.attacks:
                rate = self.worst_step(model, attack)
                if rate is None:
                    continue
                pooled = self._pooled(model, attack, rate.step)
                against = self._pooled(original, attack, rate.step)
                if len(pooled) == len(against):
                    test = self._test(pooled, against)
                    found.append((f"{model} − {original}", _at(attack, rate.step), test))
                if before is not None and len(pooled) % len(before) == 0:
                    repeated = before * (len(pooled) // len(before))
                    test = self._test(pooled, repeated)
                    found.append((f"{model} − itself before", _at(attack, rate.step), test))
        return found

    def summary(self) -> dict[str, Any]:
        """The figures of the headline and the matrix, for programs."""
        models = {}
        for model in self.models:
            found = self.resilience(model.name)
            rates = {
                attack: asdict(rate)
                for attack in (BEFORE, *self.attacks)
                if (rate := self.worst_step(model.name, attack))
            }
            models[model.name] = {
                "resilience": asdict(found) if found else None,
                "worst_attack": self.worst_attack(model.name),
                "rates": rates,
            }
        return {"scorer": self.scorer, "set": self.kind, "models": models}

    def clusters(self, images: int) -> list[str]:
        """The prompt of each image, repeated where seeds are put together."""
        prompts = self.result.prompts.get(self.kind, ())
        texts = list(prompts) or [str(place) for place in range(images)]
        return texts * max(1, images // max(1, len(texts)))

    def _test(self, first: tuple[bool, ...], second: tuple[bool, ...]) -> PairedTest:
        return paired_clusters(first, second, self.clusters(len(first)))

    def _before_flags(self, model: str) -> tuple[bool, ...] | None:
        look = self.result.look(model)
        return self.flags(look) if look is not None else None

    def _pooled(self, model: str, attack: str, step: int) -> tuple[bool, ...]:
        looks = [look for look in self.result.looks_of(model, attack) if look.step == step]
        return tuple(
            flag for look in sorted(looks, key=lambda k: k.seed) for flag in self.flags(look) or ()
        )

    def worst_overall(self) -> str | None:
        """The attack that does most to any of the models besides the original."""
        others = self.models[1:] or self.models
        found = [
            (rate.rate, -place, name)
            for place, name in enumerate(self.attacks)
            for model in others
            if (rate := self.worst_step(model.name, name))
        ]
        return max(found)[2] if found else None

    def curves(self, attack: str) -> list[Curve]:
        """One curve per model: from before the attack to its last step."""
        found = []
        for index, model in enumerate(self.models):
            before = self.before(model.name)
            rates = [*([before] if before else []), *self.by_step(model.name, attack)]
            if len(rates) > 1:
                found.append(
                    Curve(
                        name=model.name,
                        index=index,
                        steps=tuple(rate.step for rate in rates),
                        rates=tuple(rate.rate for rate in rates),
                        lows=tuple(rate.low for rate in rates),
                        highs=tuple(rate.high for rate in rates),
                    )
                )
        return found

    def index(self, model: ModelInfo) -> int:
        return self.models.index(model)


def _at(attack: str, step: int) -> str:
    return f"{attack}, step {step}" if step else attack


def _headline_set(result: ProbeResult) -> tuple[str, str]:
    """The first scorer of the plan that scored something, and the set it scored."""
    for config in result.plan.scorers:
        for kind in ("unsafe", "concept"):
            for look in result.looks:
                part = look.set_of(kind)
                if part is not None and part.scores_of(config.name) is not None:
                    return config.name, kind
    return result.plan.scorers[0].name, "unsafe"
