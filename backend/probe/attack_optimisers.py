"""Optimisers of an attack, its learning rate by step, and weight averaging."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..bilevel.inner_loop import learning_rate_at
from ..errors import ConfigError
from ..plan.attack import FineTuneAttack
from .attack_weights import TrainedWeights


def make_optimiser(attack: FineTuneAttack, weights: TrainedWeights) -> torch.optim.Optimizer:
    """Make the optimiser that the attack names, with a group for the text encoders.

    Prodigy has the settings that its authors advise for diffusion models (bias correction,
    safeguarded warm-up). It finds one step length for everything it trains, so both learning
    rates, which are factors of it (usually 1), must agree.
    """
    who = f"attack {attack.name}"
    groups: list[dict[str, Any]] = [{"params": weights.denoiser, "lr": attack.learning_rate}]
    if weights.text:
        groups.append({"params": weights.text, "lr": attack.text_encoder_learning_rate})
    decay = attack.weight_decay
    if attack.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=attack.learning_rate, weight_decay=decay, foreach=True)
    if attack.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=attack.learning_rate, weight_decay=decay, foreach=True)
    if attack.optimiser == "adamw8bit":
        kind = _optional(who, "adamw8bit", "bitsandbytes").optim.AdamW8bit
        return kind(groups, lr=attack.learning_rate, weight_decay=decay)
    kind = _optional(who, "prodigy", "prodigyopt").Prodigy
    if weights.text and attack.text_encoder_learning_rate != attack.learning_rate:
        raise ConfigError(
            f"{who}: prodigy has one learning rate for all it trains; text_encoder_learning_rate "
            f"is {attack.text_encoder_learning_rate:g}: set it to {attack.learning_rate:g}"
        )
    optimiser = kind(
        groups, lr=attack.learning_rate, use_bias_correction=True, safeguard_warmup=True
    )
    for group in optimiser.param_groups:
        group["weight_decay"] = decay  # given to the constructor it would print a line
    return optimiser


def check_optimiser(attack: FineTuneAttack) -> None:
    """Raise now the error that `make_optimiser` would raise for a missing package."""
    package = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}.get(attack.optimiser)
    if package:
        _optional(f"attack {attack.name}", attack.optimiser, package)


def _optional(who: str, name: str, package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{who}: the optimiser {name} needs {package}: pip install {package}, or choose adamw"
        ) from error


def learning_rate_share(attack: FineTuneAttack, step: int) -> float:
    """Share of the full learning rate at `step` (1 to `attack.steps`).

    It rises linearly over the warm-up's updates and reaches 1 at the last of them; the schedule
    covers the updates after it.
    """
    warm = attack.warm_up_steps
    if step <= warm:
        return step / warm
    return learning_rate_at(attack.schedule, step - warm, attack.steps - warm)


class WeightAverage:
    """Exponential moving average of the trained values: a ← d a + (1 − d) w.

    d is the attack's decay, but at most (1 + step) / (10 + step), as in the usual
    trainers: the average of a short run would otherwise consist of its starting weights.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = parameters
        self.values: list[Tensor] = [part.detach().clone() for part in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [part.data for part in self._parameters], 1 - decay)
