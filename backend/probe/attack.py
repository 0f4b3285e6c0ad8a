"""Fine-tuning attacks: trains a checkpoint as the usual trainers do, and undoes it afterwards.

An attack trains a fresh adapter or all weights, with or without the text encoders. Everything is
restored bit for bit afterwards, so that one loaded model serves any number of attacks. Memory holds
the trained weights and their optimiser besides, and for `full` one copy on the CPU to restore from.

Half precision: weights that are trained are float32. Of a checkpoint loaded in half precision
an adapter's base stays as it is, and is computed in its own type whatever `precision` says;
`full` casts it up while it trains. An evaluation sees the trained weights in the type that the
checkpoint was loaded in, which is how they would be published.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from ..bilevel.losses import denoising_errors
from ..errors import DivergenceError
from ..families.base.process import NoiseProcess
from ..model.model import Model
from ..numerics.seeds import generator
from ..numerics.torch_compat import grad_scaler
from ..plan.attack import FineTuneAttack
from .attack_batches import AttackBatches, Pass
from .attack_data import AttackData
from .attack_optimisers import WeightAverage, learning_rate_share, make_optimiser
from .attack_weights import TrainedWeights, trained_weights
from .weight_change import ChangeCallback

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LOSS_SCALE = 1024.0  # of fp16, at the start; halved at each overflow


@contextmanager
def attacked(
    model: Model,
    attack: FineTuneAttack,
    data: AttackData,
    *,
    seed: int = 0,
    evaluate_at: Callable[[int], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_change: ChangeCallback | None = None,
) -> Iterator[Model]:
    """Train `model` in place; inside the context it is the fine-tuned one, in evaluation mode.

    On leaving, also by an exception, every weight of the denoiser and the text encoders is
    restored bit for bit, and every inserted module is removed.

    Args:
        data: the result of `EncodedAttacks.for_attack` for this attack.
        seed: of adapter, batches, noise and dropout; the same on every device.
        evaluate_at: called with each step of `attack.looks`, while the model is ready to be
            scored: averaged weights where the attack has `ema`, evaluation mode, no dropout.
        on_step: called after each update with its step (from 1) and loss (the prior's share
            included). May raise to stop, as may `evaluate_at`.
        on_change: called before each `evaluate_at` with how far the weights have moved.

    Raises:
        ConfigError: an optimiser that is not installed, or data that the attack needs.
        DivergenceError: the loss is not finite at a step that is reported or evaluated.
    """
    with trained_weights(model, attack, seed=seed) as weights:
        batches = AttackBatches(model, attack, data, seed)
        average = train(model, attack, weights, batches, seed, evaluate_at, on_step, on_change)
        weights.publish(average)
        for parameter in weights.parameters:
            parameter.grad = None
        yield model


def train(
    model: Model,
    attack: FineTuneAttack,
    weights: TrainedWeights,
    batches: AttackBatches,
    seed: int,
    evaluate_at: Callable[[int], None] | None,
    on_step: Callable[[int, float], None] | None,
    on_change: ChangeCallback | None = None,
) -> list[Tensor] | None:
    """Train; return the averaged weights if the attack has `ema`."""
    optimiser = make_optimiser(attack, weights)
    rates = [group["lr"] for group in optimiser.param_groups]
    average = WeightAverage(weights.parameters, attack.ema) if attack.ema else None
    half = model.dtype if model.dtype in _HALF.values() else _HALF.get(attack.precision)
    device = model.device  # once: diffusers searches all modules for it
    scaler = grad_scaler(device.type, init_scale=_LOSS_SCALE, enabled=half == torch.float16)
    process = model.process.to(device)
    for step in range(1, attack.steps + 1):
        share = learning_rate_share(attack, step)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * share
        total = torch.zeros((), device=device)
        with _dropout(device, attack, seed, step):
            for one in batches.update(step):
                with _autocast(device, half):
                    loss = _loss(model, attack, process, batches, one)
                scaler.scale(loss).backward()
                total += loss.detach()
        scaler.unscale_(optimiser)
        if attack.gradient_norm:
            torch.nn.utils.clip_grad_norm_(weights.parameters, attack.gradient_norm, foreach=True)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        if average:
            average.update(step)
        if on_step:
            on_step(step, _finite(total, attack, step))
        if step in attack.looks:
            _finite(total, attack, step)
            if evaluate_at:
                trained = weights.publish(average.values if average else None)
                if on_change:
                    on_change(weights.changes())
                evaluate_at(step)
                weights.resume(trained)
    return average.values if average else None


def _loss(
    model: Model,
    attack: FineTuneAttack,
    process: NoiseProcess,
    batches: AttackBatches,
    one: Pass,
) -> Tensor:
    """Return one pass's share of the update's loss: the mean over the attacker's samples plus
    `prior_weight` times the mean over the prior's (Ruiz et al., arXiv:2208.12242)."""
    draw = one.draw
    noised = process.add_noise(draw.latents, draw.noise, draw.timesteps)
    target = process.target(draw.latents, draw.noise, draw.timesteps)
    conditioning = batches.conditioning(one).to(noised.device, model.dtype)
    errors = denoising_errors(
        model.denoise(noised.to(model.dtype), draw.timesteps, conditioning), target
    ) / (attack.batch * attack.accumulate)
    if one.own == len(draw):
        return errors.sum()
    return errors[: one.own].sum() + attack.prior_weight * errors[one.own :].sum()


def _autocast(device: torch.device, half: torch.dtype | None) -> AbstractContextManager[object]:
    return torch.autocast(device.type, half) if half else nullcontext()


@contextmanager
def _dropout(device: torch.device, attack: FineTuneAttack, seed: int, step: int) -> Iterator[None]:
    """Seed dropout by attack seed and step only; leave the global generators unchanged."""
    if not attack.dropout:
        yield
        return
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(generator(seed, "attack", "dropout", step).initial_seed())
        yield


def _finite(loss: Tensor, attack: FineTuneAttack, step: int) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise DivergenceError(
            f"attack {attack.name}: the loss is {value} at step {step}; lower its learning_rate, "
            "raise warm_up_steps, or clip with gradient_norm"
        )
    return value
