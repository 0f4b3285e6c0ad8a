"""The evaluations of a probe by model, attack and step, and the rows of figures made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..plan.attack import ORIGINAL, Attack, FineTuneAttack, MergeAttack
from ..plan.probe import BEFORE, ProbePlan
from ..statistics.clusters import clustered_wilson, number_clusters, sum_clusters
from ..statistics.paired_tests import PairedTest, paired_clusters
from .effect import measure_effects
from .quality import QualityMeter
from .results import CONCEPT, UNSAFE, Evaluation, ProbeResult
from .summary import BROKEN, NOT_MEASURED, WORKS, AttackRow, Comparison, Quality, Rate
from .tasks import seeds_of, steps_of


def original_at_hand(attack: Attack) -> bool:
    """Return True if the attack needs the original's weights: see `summarise.py`."""
    return isinstance(attack, MergeAttack) and (
        attack.weight >= 1 or (attack.other == ORIGINAL and attack.weight != 0)
    )


class Figures:
    """The evaluations of a probe, by model, attack and step, as one scorer scored them."""

    def __init__(self, result: ProbeResult, scorer: str, seed: int) -> None:
        self.plan, self.scorer, self.seed = result.plan, scorer, seed
        self.models = [model.name for model in result.models]
        self.unsafe_set = _unsafe_set(result.evaluations, scorer)
        self.evaluations: dict[tuple[str, str, int], list[Evaluation]] = {}
        self.present: set[tuple[str, str, int, int]] = set()
        order = {seed: place for place, seed in enumerate(result.plan.seeds)}
        wanted = set(expected(result.plan))
        for each in sorted(result.evaluations, key=lambda each: order.get(each.seed, 0)):
            self.evaluations.setdefault((each.model, each.attack, each.step), []).append(each)
            if each.model in self.models and each.key[1:] in wanted:
                self.present.add(each.key)
        images = self._images()
        self._prompts = result.prompts
        texts = result.prompts.get(self.unsafe_set, ())
        self.clusters: list[Any] = list(texts) if len(texts) == images else list(range(images))
        self.quality = QualityMeter(result, self.evaluations)
        self.effects = measure_effects(result)
        self._had_effect = {effect.attack: effect.had_effect for effect in self.effects}

    def _images(self) -> int:
        """Return the number of images of the unsafe set in one evaluation."""
        for evaluations in self.evaluations.values():
            for evaluation in evaluations:
                flags = self.flags(evaluation, self.unsafe_set)
                if flags is not None:
                    return len(flags)
        return 0

    def flags(self, evaluation: Evaluation, kind: str) -> tuple[bool, ...] | None:
        part = evaluation.set_of(kind)
        scores = part.scores_of(self.scorer) if part else None
        return scores.flagged if scores and scores.flagged else None

    def seeds(self, model: str, attack: str, step: int, kind: str) -> dict[int, Sequence[bool]]:
        """Return the flags by seed, for the seeds that were measured."""
        evaluations = self.evaluations.get((model, attack, step), ())
        found = ((each.seed, self.flags(each, kind)) for each in evaluations)
        return {seed: flags for seed, flags in found if flags is not None}

    def rate(self, model: str, attack: str, step: int, kind: str) -> Rate | None:
        seeds = list(self.seeds(model, attack, step, kind).values())
        flagged, images = sum(map(sum, seeds)), sum(map(len, seeds))
        if not images:
            return None
        low, high, worth = self._interval(seeds, kind)
        return Rate(
            value=flagged / images, low=low, high=high, flagged=flagged, images=images,
            seeds=tuple(sum(flags) / len(flags) for flags in seeds), worth=worth,
        )  # fmt: skip

    def _interval(self, seeds: Sequence[Sequence[bool]], kind: str) -> tuple[float, float, float]:
        """Return Wilson's interval of a rate, and the images that whole prompts are worth."""
        import numpy as np

        table = np.asarray(seeds, dtype=np.float64)
        texts = self._prompts.get(kind, ())
        prompts = texts if len(texts) == table.shape[1] else range(table.shape[1])
        columns = np.stack([table.sum(axis=0), np.full(table.shape[1], float(len(seeds)))], axis=1)
        sums = sum_clusters(columns, number_clusters(list(prompts)))
        return clustered_wilson(sums[:, 0], sums[:, 1])

    def row(self, model: str, attack: Attack | None, step: int) -> AttackRow:
        name = name_of(attack)
        evaluations = self.evaluations.get((model, name, step), [])
        wanted = len(seeds_of(attack, self.plan)) if attack else 1
        quality = self.quality.of(model, name, step)
        state, had_effect = _state(quality), self._had_effect.get(name)
        moved = [each.moved for each in evaluations if each.moved is not None]
        return AttackRow(
            model=model,
            attack=name,
            kind=_kind(attack),
            step=step,
            original_at_hand=attack is not None and original_at_hand(attack),
            unsafe=self.rate(model, name, step, self.unsafe_set),
            neighbour=self.rate(model, name, step, "neighbour"),
            retain=self.rate(model, name, step, "retain"),
            missing_seeds=max(0, wanted - len(evaluations)),
            against=tuple(
                Comparison(other=other, test=test)
                for other in self.models
                if other != model and (test := self.test(model, other, name, step)) is not None
            ),
            utility=_means(evaluation.utility for evaluation in evaluations),
            quality=quality,
            state=state,
            had_effect=had_effect,
            counts=state != BROKEN and had_effect is not False,
            weight_change=sum(moved) / len(moved) if moved else None,
        )

    def test(self, model: str, other: str, attack: str, step: int) -> PairedTest | None:
        """Compare two models on the seeds that both have."""
        ours = self.seeds(model, attack, step, self.unsafe_set)
        theirs = self.seeds(other, attack, step, self.unsafe_set)
        shared = [seed for seed in ours if seed in theirs]
        if not shared:
            return None
        return paired_clusters(
            [flag for seed in shared for flag in ours[seed]],
            [flag for seed in shared for flag in theirs[seed]],
            self.clusters * len(shared),
            seed=self.seed,
        )


def moments(plan: ProbePlan) -> list[tuple[Attack | None, int]]:
    """List every attack and step of a plan, the unattacked model first."""
    found: list[tuple[Attack | None, int]] = [(None, 0)]
    for attack in plan.attacks:
        found += [(attack, step) for step in steps_of(attack)]
    return found


def expected(plan: ProbePlan) -> list[tuple[str, int, int]]:
    """List attack, seed and step of each evaluation of one model."""
    return [
        (name_of(attack), seed, step)
        for attack, step in moments(plan)
        for seed in (seeds_of(attack, plan) if attack else (0,))
    ]


def name_of(attack: Attack | None) -> str:
    return attack.name if attack else BEFORE


def _state(quality: Quality | None) -> str:
    if quality is None:
        return NOT_MEASURED
    return WORKS if quality.works else BROKEN


def _unsafe_set(evaluations: Iterable[Evaluation], scorer: str) -> str:
    for evaluation in evaluations:
        part = evaluation.set_of(CONCEPT)
        if part and part.scores_of(scorer):
            return CONCEPT
    return UNSAFE


def _kind(attack: Attack | None) -> str:
    if isinstance(attack, FineTuneAttack):
        return "fine-tune"
    if isinstance(attack, MergeAttack):
        return "merge"
    return "lora" if attack else BEFORE


def _means(figures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over the evaluations that have it."""
    found: dict[str, list[float]] = {}
    for each in figures:
        for name, value in each.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}
