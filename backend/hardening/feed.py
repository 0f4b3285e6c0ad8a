"""Draws the batches, users and losses of an outer step, from seed, use and step alone.

Nothing here has a history, so a run that is resumed at any step, or shared by several processes,
meets the same samples, noise and timesteps as an uninterrupted run in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..bilevel.objective import Harm, Objective, Seat
from ..bilevel.vectors import Loss, Terms
from ..data.batches import Draw, EncodedData, EncodedSet, draw
from ..families.base.conditioning import Conditioning, onto
from ..families.base.process import NoiseProcess
from ..numerics.seeds import generator
from ..plan.fine_tune import FineTuneConfig
from ..plan.hardening import HardeningPlan
from .stored import StoredPredictions, batch_number


@dataclass(frozen=True, slots=True)
class Feed:
    """Losses of each step of a plan on drawn samples, on the device that trains; steps from 1."""

    plan: HardeningPlan
    data: EncodedData
    objective: Objective
    process: NoiseProcess
    device: torch.device
    stored: StoredPredictions | None = None

    def harm(self, step: int) -> Harm:
        """Return L_harm on the step's samples of the concepts."""
        counts = self._concept_counts(self.plan.forget_batch, "concepts", step)
        draws = [self._draw(self.data.forget[n], c, 0.0, "forget", n, step) for n, c in counts]
        anchors = [self.data.anchors[name].onto(self.device) for name, _ in counts]
        return self.objective.harm(draws, anchors)

    def retain(self, step: int) -> Loss:
        """Return L_retain on the step's samples of what must stay."""
        plan = self.plan
        return self.objective.retain(
            self._draw(self.data.retain, plan.retain_batch, plan.caption_dropout, "retain", step)
        )

    def retain_pass(self, number: int) -> Callable[[], Tensor]:
        """Return a forward pass on batch `number` of the retain set, to watch layers' inputs in."""
        plan = self.plan
        some = self._draw(
            self.data.retain, plan.retain_batch, plan.caption_dropout, "projection", number
        )
        return lambda: self.objective.predict(some)

    def kept_passes(self) -> list[tuple[float, Callable[[], Tensor]]]:
        """Return weighted passes on what must stay, for measuring layers' inputs.

        The retain set and the more varied images weigh alike, however many there are of each.
        """
        sets = [self.data.retain] + ([self.data.varied] if self.data.varied else [])
        return [
            (1.0, self._measuring_pass(encoded, self.plan.caption_dropout, count, "kept", *use))
            for place, encoded in enumerate(sets)
            for count, *use in self._measuring_uses(place)
        ]

    def concept_passes(self) -> list[tuple[float, Callable[[], Tensor]]]:
        """Return passes on the concepts, weighted as the plan weighs them."""
        return [
            (concept.weight, self._measuring_pass(
                self.data.forget[concept.name], 0.0, count, "concept", *use))
            for concept in self.plan.concepts
            for count, *use in self._measuring_uses(concept.name)
        ]  # fmt: skip

    def kept_losses(self) -> list[tuple[float, Callable[[], Loss]]]:
        """Return weighted denoising losses of single samples of what must stay."""
        sets = [self.data.retain] + ([self.data.varied] if self.data.varied else [])
        return [
            (1.0, partial(self._single_loss, encoded, "kept", place, number))
            for place, encoded in enumerate(sets)
            for number in range(self.plan.erase.samples)
        ]

    def concept_losses(self) -> list[tuple[float, Callable[[], Loss]]]:
        """Return denoising losses of single samples of the concepts, weighted as the plan says."""
        return [
            (concept.weight, partial(
                self._single_loss, self.data.forget[concept.name], "concept", concept.name, number))
            for concept in self.plan.concepts
            for number in range(self.plan.erase.samples)
        ]  # fmt: skip

    def _single_loss(self, encoded: EncodedSet, *use: str | int) -> Loss:
        return self.objective.fine_tuning([self._draw(encoded, 1, 0.0, "fisher", *use)], [1.0])

    def _measuring_uses(self, of: str | int) -> list[tuple[int, str | int, int]]:
        """(samples, set, number) of each measuring pass over a set."""
        batch, samples = self.plan.erase.batch, self.plan.erase.samples
        return [(min(batch, samples - start), of, start) for start in range(0, samples, batch)]

    def _measuring_pass(
        self, encoded: EncodedSet, dropout: float, count: int, *use: str | int
    ) -> Callable[[], Tensor]:
        return lambda: self.objective.predict(self._draw(encoded, count, dropout, "erase", *use))

    def distillation(self, step: int) -> tuple[Terms, ...]:
        """Return the terms of a step of distillation, whose sum is its objective: each of samples
        that are shown a caption of the concepts, and of those with their own, [2]."""
        settings, number = self.plan.distil, batch_number(self.plan, step)
        parts = self._distilled(number)
        draws, unknown = [part for part, _, _ in parts], [None] * len(parts)
        predicted = unknown if self.stored is None else self.stored.of(number, draws)
        terms: tuple[Terms, ...] = ()
        for (part, shown, replaced), target in zip(parts, predicted, strict=True):
            weights = self.process.error_weights(part.timesteps, settings.weight_cap)
            terms += self.objective.distillation(
                part, shown, replaced, weights / settings.batch, target
            )
        return terms

    def distilled(self, number: int) -> list[Draw]:
        """Return the draws of a batch of distillation, those of one shape in one."""
        return [part for part, _, _ in self._distilled(number)]

    def _distilled(self, step: int) -> list[tuple[Draw, Conditioning, Tensor]]:
        """Return what `_redirected` draws from each set, those of one shape in one."""
        settings, sets = self.plan.distil, [self.data.retain]
        sizes = [settings.batch]
        if self.data.varied is not None:
            varied = round(settings.batch * settings.varied_share)
            sets, sizes = [*sets, self.data.varied], [settings.batch - varied, varied]
        parts = [
            self._redirected(encoded, size, step, place)
            for place, (encoded, size) in enumerate(zip(sets, sizes, strict=True))
            if size
        ]
        if len({part.shape for part, _, _ in parts}) == 1:
            draws, shown, replaced = zip(*parts, strict=True)
            parts = [(Draw.cat(draws), Conditioning.cat(shown), torch.cat(replaced))]
        return parts

    def _redirected(
        self, encoded: EncodedSet, size: int, step: int, place: int
    ) -> tuple[Draw, Conditioning, Tensor]:
        """Draw samples, and captions with which the first of them are shown instead of their own.

        Returns: the draw with the captions that the original reads, the captions to show, and
        whose differ, [size] of bool.
        """
        draw = self._draw(
            encoded, size, self.plan.caption_dropout, "distil", step, place,
            middle=self.plan.distil.middle_share,
        )  # fmt: skip
        if self.plan.distil.mixed_share:
            draw = replace(draw, conditioning=self._mixed(draw, encoded, step, place))
        chance = torch.rand((), generator=self._random("distil", "share", step, place)).item()
        count = min(size, int(size * self.plan.distil.concept_share + chance))
        if self.data.words is not None:
            draw = replace(draw, conditioning=self._in_words(draw, count, step, place))
        replaced = torch.arange(size, device=self.device) < count
        shown = own = draw.conditioning
        if count:
            first = own[:count]
            captions, anchors, anchored = self._concept_captions(count, step, place)
            shown = Conditioning.cat([first.beside(captions), own[count:]])
            if self.plan.distil.towards == "anchor":
                first = first.where(anchored, first.beside(anchors))
                draw = replace(draw, conditioning=Conditioning.cat([first, own[count:]]))
        return draw, shown, replaced

    def _mixed(self, draw: Draw, encoded: EncodedSet, *use: int) -> Conditioning:
        """Blend the captions of a share of the draw with those of other images of the set."""
        random, size = self._random("distil", "mixed", *use), len(draw)
        chosen = torch.rand(size, generator=random) < self.plan.distil.mixed_share
        share = torch.rand(size, generator=random) * chosen
        others = torch.randint(len(encoded.conditioning), (size,), generator=random)
        other = encoded.conditioning[others].onto(self.device)
        own = draw.conditioning
        return own.mix(own.beside(other), onto(share, self.device))

    def _in_words(self, draw: Draw, first: int, *use: int) -> Conditioning:
        """Replace the captions of a share of the draw, from sample `first` on, by random words."""
        assert self.data.words is not None
        random, size = self._random("distil", "words", *use), len(draw)
        chosen = torch.rand(size, generator=random) < self.plan.distil.words_share
        chosen &= torch.arange(size) >= first
        picks = torch.randint(len(self.data.words), (size,), generator=random)
        own, words = draw.conditioning, self.data.words[picks].onto(self.device)
        return own.where(onto(chosen, self.device), own.beside(words))

    def _concept_captions(self, count: int, *use: int) -> tuple[Conditioning, Conditioning, Tensor]:
        """Draw captions of the concepts, by their weights.

        Returns: the captions, each one's anchor, and whose concept has one, [count] of bool.
        """
        found, anchors, anchored = [], [], []
        given = {concept.name: bool(concept.anchor) for concept in self.plan.concepts}
        for name, n in self._concept_counts(count, "distil", "concepts", *use):
            texts = self.data.forget[name].conditioning
            random = self._random("distil", "captions", name, *use)
            found.append(texts[torch.randint(len(texts), (n,), generator=random)])
            anchors.append(self.data.anchors[name].expand(n))
            anchored += [given[name]] * n
        captions, ends = Conditioning.cat(found), Conditioning.cat(anchors)
        which = onto(torch.tensor(anchored), self.device)
        return captions.onto(self.device), ends.onto(self.device), which

    def configurations(self, step: int) -> list[FineTuneConfig]:
        """Draw the step's J simulated users, none twice."""
        pool = self.plan.fine_tunes
        order = torch.randperm(len(pool), generator=self._random("configurations", step))
        return [pool[int(i)] for i in order[: self.plan.configurations_per_step]]

    def seed(self, step: int, number: int) -> int:
        """Draw the seed for the fresh LoRA of the step's user `number`."""
        return int(torch.randint(2**31, (), generator=self._random("user", step, number)))

    def fine_tuning(self, step: int, number: int, inner: int, fine_tune: FineTuneConfig) -> Loss:
        """Return the loss of one inner step: its data, some of the concept, the DreamBooth prior.

        inner: 1 to the user's steps; 0 is the batch whose Hessian the solve uses.
        """
        parts = self._user_draws(step, number, inner, fine_tune)
        return self.objective.fine_tuning([p for p, _ in parts], [w for _, w in parts])

    def side_by_side(
        self, step: int, users: Sequence[tuple[int, FineTuneConfig]], inner: int, seat: Seat
    ) -> tuple[Terms, ...]:
        """Return the losses of several users (number, configuration), in passes that they share."""
        return self.objective.side_by_side(
            [self._user_draws(step, number, inner, user) for number, user in users], seat
        )

    def _user_draws(
        self, step: int, number: int, inner: int, fine_tune: FineTuneConfig
    ) -> list[tuple[Draw, float]]:
        use = ("inner", step, number, inner)
        count = fine_tune.batch
        if inner == 0 and self.plan.solver.batch:
            count = self.plan.solver.batch
        chance = torch.rand((), generator=self._random(*use, "share")).item()
        harmful = min(count, int(count * fine_tune.concept_share + chance))
        drop = fine_tune.caption_dropout
        parts: list[tuple[Draw, float]] = []
        if count > harmful:
            own = self._draw(self.data.fine_tunes[fine_tune.data], count - harmful, drop, *use)
            parts.append((own, (count - harmful) / count))
        if harmful:
            for name, n in self._concept_counts(harmful, *use, "concepts"):
                some = self._draw(self.data.forget[name], n, drop, *use, "concept", name)
                parts.append((some, n / count))
        if fine_tune.method == "dreambooth":
            prior = self.data.fine_tunes[fine_tune.prior_data]
            some = self._draw(prior, count, 0.0, *use, "prior")
            parts.append((some, fine_tune.prior_weight))
        return parts

    def _random(self, *use: str | int) -> torch.Generator:
        return generator(self.plan.seed, *use)

    def _draw(
        self, encoded: EncodedSet, count: int, dropout: float, *use: str | int, middle: float = 0.0
    ) -> Draw:
        return draw(
            encoded,
            self._random(*use),
            count,
            self.process,
            caption_dropout=dropout,
            middle=middle,
        ).onto(self.device)

    def _concept_counts(self, total: int, *use: str | int) -> list[tuple[str, int]]:
        """Share `total` samples among the concepts, at random by their weights."""
        weights = torch.tensor([concept.weight for concept in self.plan.concepts])
        picks = torch.multinomial(weights, total, replacement=True, generator=self._random(*use))
        counts = torch.bincount(picks, minlength=len(weights)).tolist()
        names = [concept.name for concept in self.plan.concepts]
        return [(name, count) for name, count in zip(names, counts, strict=True) if count]
