"""The losses of one outer step, bound to a denoiser and its frozen random draws.

Each method returns a closure without arguments, which gives the same value at each call with the
same weights. θ and θ* are evaluated on the same latents, noise and timesteps, so that their
difference is not noise. With `micro_batch` a loss is a sum of terms of at most so many samples
(`SplitLoss`): all losses here are means over samples, so their gradients add up to the batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..adapter.passes import Trained
from ..data.batches import Draw
from ..families.base.conditioning import Conditioning
from ..families.base.process import NoiseProcess
from ..plan.harm import HarmConfig
from .losses import ascent_loss, denoising_errors, denoising_loss, redirect_target
from .vectors import Loss, SplitLoss, Terms

Seat = Callable[[Sequence[tuple[int, int]]], None]
Distance = Callable[[Tensor, Tensor], Tensor]  # of a prediction and its target, a mean


@dataclass(frozen=True, slots=True)
class Harm:
    """L_harm on one batch: `loss()` at the present weights, `base` at the frozen model.

    For the ascent loss `base` is 0, which makes q the plain ratio of the two losses.
    """

    loss: Loss
    base: Tensor


class Objective:
    """Losses of a denoiser under a noise process; `micro_batch` 0 takes whole batches."""

    def __init__(
        self,
        denoiser: Trained,
        process: NoiseProcess,
        harm: HarmConfig,
        micro_batch: int = 0,
    ) -> None:
        self._denoiser = denoiser
        self._process = process
        self._harm = harm
        self._micro_batch = micro_batch

    def harm(self, draws: Sequence[Draw], anchors: Sequence[Conditioning]) -> Harm:
        """Build L_harm over the concepts' draws, each with its anchor's conditioning ([1, ...])."""
        total = sum(len(draw.latents) for draw in draws)
        shares = [len(draw.latents) / total for draw in draws]
        if self._harm.loss == "ascent":
            targets = [self._target(draw) for draw in draws]
            return Harm(
                self._loss(shares, draws, targets, partial(ascent_loss, cap=self._harm.cap)),
                torch.zeros((), device=draws[0].latents.device),
            )
        return self._redirect(draws, anchors, shares)

    def _redirect(
        self, draws: Sequence[Draw], anchors: Sequence[Conditioning], shares: list[float]
    ) -> Harm:
        targets, base = [], []
        for draw, anchor in zip(draws, anchors, strict=True):
            concept = self.original(draw)
            other = self.original(draw, anchor)
            targets.append(redirect_target(concept, other, self._harm.guidance))
            base.append(denoising_loss(concept, targets[-1]))
        return Harm(self._loss(shares, draws, targets, denoising_loss), _weighted(shares, base))

    def retain(self, draw: Draw) -> Loss:
        """Build L_retain: the mean of ‖prediction − frozen prediction‖²."""
        return self._loss([1.0], [draw], [self.original(draw)], denoising_loss)

    def distillation(
        self,
        draw: Draw,
        shown: Conditioning,
        replaced: Tensor,
        weights: Tensor,
        predicted: Tensor | None = None,
    ) -> tuple[Terms, ...]:
        """Build weighted errors of a draw, as terms of [replaced, own] captions each.

        The target of each sample is the original's prediction for the caption in `draw`: the
        sample's own, a blend of two, or the concept's anchor. The network trained is shown the
        caption in `shown`.

        Args:
            replaced: whose caption in `shown` is another, [batch] of bool.
            weights: of each sample's squared error, [batch].
            predicted: what `original` said of the draw before; it is asked now without.
        """
        size = self._micro_batch or len(draw)
        shares = torch.stack([weights * replaced, weights * ~replaced], dim=1)
        parts = replace(draw, conditioning=shown).split(size)
        targets = (self.original(draw) if predicted is None else predicted).split(size)
        return tuple(
            partial(self._distances, part, target, share)
            for part, target, share in zip(parts, targets, shares.split(size), strict=True)
        )

    def _distances(self, draw: Draw, target: Tensor, shares: Tensor) -> Tensor:
        """Return the errors of a draw's samples times their shares, [2]. shares: [batch, 2]."""
        errors = denoising_errors(self.predict(draw), target)
        return errors @ shares.to(errors)

    def fine_tuning(self, draws: Sequence[Draw], weights: Sequence[float]) -> Loss:
        """Build a user's loss: the weighted sum of denoising errors over the draws."""
        return self._loss(weights, draws, [self._target(draw) for draw in draws], denoising_loss)

    def side_by_side(
        self, users: Sequence[Sequence[tuple[Draw, float]]], seat: Seat
    ) -> tuple[Terms, ...]:
        """Build the losses of several users, in passes that they share.

        Args:
            users: the draws of each and their weights, as for `fine_tuning`.
            seat: called just before a pass with (user, samples) in the order of its batch.

        Returns: a term for each shape of samples; the losses are their sums.
        """
        shapes: dict[object, list[tuple[int, Draw, float]]] = {}
        for user, parts in enumerate(users):
            for draw, weight in parts:
                shapes.setdefault(draw.shape, []).append((user, draw, weight))
        return tuple(partial(self._shared, len(users), group, seat) for group in shapes.values())

    def _shared(self, users: int, group: list[tuple[int, Draw, float]], seat: Seat) -> Tensor:
        """Run one pass; return the weighted errors of each user's samples in it, [users]."""
        together = Draw.cat([draw for _, draw, _ in group])
        seat([(user, len(draw)) for user, draw, _ in group])
        predicted = self.predict(together).split([len(draw) for _, draw, _ in group])
        values = [torch.zeros((), device=together.latents.device) for _ in range(users)]
        for (user, draw, weight), part in zip(group, predicted, strict=True):
            values[user] = values[user] + weight * denoising_loss(part, self._target(draw))
        return torch.stack(values)

    def _loss(
        self,
        weights: Sequence[float],
        draws: Sequence[Draw],
        targets: Sequence[Tensor],
        distance: Distance,
    ) -> Loss:
        """Build the weighted sum of distances, whole or as one term for each micro-batch."""
        if not 0 < self._micro_batch < sum(map(len, draws)):
            return lambda: _weighted(
                weights,
                [distance(p, t) for p, t in zip(self._predict_all(draws), targets, strict=True)],
            )

        def term(weight: float, part: Draw, target: Tensor) -> Tensor:
            return weight * distance(self.predict(part), target)

        return SplitLoss(
            tuple(
                partial(term, weight * len(part) / len(draw), part, target)
                for weight, draw, whole in zip(weights, draws, targets, strict=True)
                for part, target in zip(
                    draw.split(self._micro_batch), whole.split(self._micro_batch), strict=True
                )
            )
        )

    def original(self, draw: Draw, anchor: Conditioning | None = None) -> Tensor:
        """Return the original model's prediction; `anchor` ([1, ...]) replaces the captions, but
        not what samples have besides, such as their size."""
        if anchor is not None:
            captions = draw.conditioning.beside(anchor.expand(len(draw)))
            draw = replace(draw, conditioning=captions)
        with self._denoiser.frozen():
            return torch.cat([self.predict(part) for part in draw.split(self._micro_batch)])

    def _predict_all(self, draws: Sequence[Draw]) -> list[Tensor]:
        """Predict each draw. Those of one shape share a pass: a GPU computes few samples at a time
        as slowly as many."""
        groups: dict[object, list[int]] = {}
        for number, draw in enumerate(draws):
            groups.setdefault(draw.shape, []).append(number)
        found: dict[int, Tensor] = {}
        for numbers in groups.values():
            several = [draws[number] for number in numbers]
            together = self.predict(several[0] if len(several) == 1 else Draw.cat(several))
            found |= zip(numbers, together.split([len(draw) for draw in several]), strict=True)
        return [found[number] for number in range(len(draws))]

    def predict(self, draw: Draw) -> Tensor:
        """Predict a draw with the present weights."""
        noised = self._process.add_noise(draw.latents, draw.noise, draw.timesteps)
        return self._denoiser(noised, draw.timesteps, draw.conditioning)

    def _target(self, draw: Draw) -> Tensor:
        return self._process.target(draw.latents, draw.noise, draw.timesteps)


def _weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum()
