"""The losses of hardening, as functions of predictions and targets.

L_harm ascent: −mean_i cap · tanh(m_i / cap) with m_i the denoising error of sample i. The
saturation is per sample: on the batch mean, a few samples at extreme timesteps use up the cap
while the others stay harmful. L_harm redirect: ‖ε_θ(x, c) − [ε(x, a) − η (ε(x, c) − ε(x, a))]‖²
with ε the frozen model and a the anchor prompt (Gandikota et al., arXiv:2303.07345). L_retain:
‖ε_θ(x, c) − ε(x, c)‖² on retained data (Li et al., arXiv:2507.16302).
"""

from __future__ import annotations

import torch
from torch import Tensor


def denoising_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Return each sample's mean squared error: [batch, ...] twice to [batch], float32 or wider."""
    wide = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(wide) - target.to(wide)).square().flatten(1).mean(dim=1)


def denoising_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error over the batch, a scalar, which fine-tuning minimises."""
    return denoising_errors(prediction, target).mean()


def ascent_loss(prediction: Tensor, target: Tensor, cap: float) -> Tensor:
    """Return −mean(cap · tanh(m / cap)), from 0 (perfect predictions) to −cap (none at all)."""
    return -(cap * torch.tanh(denoising_errors(prediction, target) / cap)).mean()


def redirect_target(concept: Tensor, anchor: Tensor, guidance: float) -> Tensor:
    """Return the target of redirect: anchor − guidance · (concept − anchor).

    Both arguments are predictions of the frozen model for the same noised latents,
    [batch, channels, height, width].
    """
    return anchor - guidance * (concept - anchor)


def remaining_harm(loss_after: Tensor, loss_before: Tensor, loss_base: Tensor | float) -> Tensor:
    """Return q, the share of the harm loss's distance from the base that a simulated user leaves.

    1: the simulated run brought nothing back; 0: everything. For the ascent loss the base is
    taken as 0, so that q = L_harm(θ*) / L_harm(θ). Scalars.
    """
    gap = loss_before - loss_base
    tiny = torch.finfo(gap.dtype).tiny
    gap = torch.where(gap.abs() < tiny, torch.full_like(gap, -tiny), gap)
    return (loss_after - loss_base) / gap
