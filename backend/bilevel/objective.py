"""The losses of one outer step, bound to a denoiser and its frozen random draws.

Each method returns a closure without arguments: the same numbers each time it is called at
the same weights. θ and θ* are judged on the same latents, noise and timesteps, so that their
difference is not noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapter.apply import AdaptedDenoiser
from ..config import HarmConfig
from ..data.batches import Draw
from ..model.denoiser import Conditioning
from ..model.schedule import NoiseSchedule
from .losses import ascent_loss, denoising_loss, redirect_target

Loss = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Harm:
    """L_harm on one batch: `loss()` at the weights as they stand, `base` at the frozen model.

    For the ascent loss `base` is 0, which makes q the plain ratio of the two losses.
    """

    loss: Loss
    base: Tensor


class Objective:
    """Losses of a denoiser under a noise schedule."""

    def __init__(
        self, denoiser: AdaptedDenoiser, schedule: NoiseSchedule, harm: HarmConfig
    ) -> None:
        self._denoiser = denoiser
        self._schedule = schedule
        self._harm = harm

    def harm(self, draws: Sequence[Draw], anchors: Sequence[Conditioning]) -> Harm:
        """L_harm over the concepts' draws, each with its anchor's conditioning ([1, ...])."""
        total = sum(len(draw.latents) for draw in draws)
        shares = [len(draw.latents) / total for draw in draws]
        if self._harm.loss == "ascent":
            targets = [self._target(draw) for draw in draws]
            return Harm(
                lambda: _weighted(
                    shares,
                    [
                        ascent_loss(self._predict(draw), target, self._harm.cap)
                        for draw, target in zip(draws, targets, strict=True)
                    ],
                ),
                torch.zeros((), device=draws[0].latents.device),
            )
        return self._redirect(draws, anchors, shares)

    def _redirect(
        self, draws: Sequence[Draw], anchors: Sequence[Conditioning], shares: list[float]
    ) -> Harm:
        targets, base = [], []
        with self._denoiser.frozen():
            for draw, anchor in zip(draws, anchors, strict=True):
                concept = self._predict(draw)
                other = self._predict(draw, anchor.expand(len(draw.latents)))
                targets.append(redirect_target(concept, other, self._harm.guidance))
                base.append(denoising_loss(concept, targets[-1]))
        return Harm(
            lambda: _weighted(
                shares,
                [
                    denoising_loss(self._predict(draw), target)
                    for draw, target in zip(draws, targets, strict=True)
                ],
            ),
            _weighted(shares, base),
        )

    def retain(self, draw: Draw) -> Loss:
        """‖prediction − frozen prediction‖², a mean."""
        with self._denoiser.frozen():
            target = self._predict(draw)
        return lambda: denoising_loss(self._predict(draw), target)

    def fine_tuning(self, draws: Sequence[Draw], weights: Sequence[float]) -> Loss:
        """What a user minimises: the weighted sum of denoising errors over the draws."""
        return lambda: _weighted(
            weights, [denoising_loss(self._predict(draw), self._target(draw)) for draw in draws]
        )

    def _predict(self, draw: Draw, conditioning: Conditioning | None = None) -> Tensor:
        noised = self._schedule.add_noise(draw.latents, draw.noise, draw.timesteps)
        return self._denoiser(noised, draw.timesteps, conditioning or draw.conditioning)

    def _target(self, draw: Draw) -> Tensor:
        return self._schedule.target(draw.latents, draw.noise, draw.timesteps)


def _weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum()
