"""Attacks on the tiny model, and what must be true of it before and after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fakes import random_conditioning, random_set
from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.probe.attack import attacked
from resalign.backend.probe.attack_data import AttackData

METHODS = ("lora", "dora", "loha", "lokr", "full")
ATTACK = FineTuneAttack(name="attack", steps=3, rank=2, learning_rate=1e-2)
EVERY_TARGET = ("attention", "feed_forward", "convolution")
DATA = AttackData(data=random_set(8, 1), concept=random_set(8, 2, shift=1.0))


def attack_by(method: str, **changes: Any) -> FineTuneAttack:
    rate = 1e-3 if method == "full" else 1e-2
    return replace(ATTACK, method=method, learning_rate=rate, **changes)


def networks(model: Any) -> list[torch.nn.Module]:
    return [model.denoiser, *model.text_encoders]


def state(model: Any) -> list[dict[str, torch.Tensor]]:
    return [{n: t.clone() for n, t in part.state_dict().items()} for part in networks(model)]


def assert_untouched(model: Any, before: list[dict[str, torch.Tensor]]) -> None:
    """Every tensor by name, type and bit; no module, gradient or mode left behind."""
    for network, old in zip(networks(model), before, strict=True):
        now = network.state_dict()
        assert now.keys() == old.keys()
        assert all(now[name].dtype == old[name].dtype for name in old)
        assert all(torch.equal(now[name], old[name]) for name in old)
        assert not any(part.requires_grad for part in network.parameters())
        assert all(part.grad is None for part in network.parameters())
        assert not any(module.training for module in network.modules())
        assert not any(getattr(m, "gradient_checkpointing", False) for m in network.modules())
        assert not hasattr(network, "peft_config")


def prediction(model: Any) -> torch.Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = random_conditioning(2).to("cpu", model.dtype)
        return model.denoise(latents.to(model.dtype), torch.tensor([10, 500]), told).float()


def changed_modules(model: Any, attack: FineTuneAttack, data: AttackData = DATA) -> set[str]:
    """Layers whose answer to a fixed input is another one inside the attack than outside."""
    layers = {
        name: module
        for name, module in model.denoiser.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    random = torch.Generator().manual_seed(0)
    inputs = {
        name: torch.randn(2, layer.in_features, generator=random)
        if isinstance(layer, torch.nn.Linear)
        else torch.randn(2, layer.in_channels, 4, 4, generator=random)
        for name, layer in layers.items()
    }

    @torch.no_grad()
    def answers() -> dict[str, torch.Tensor]:
        return {name: model.denoiser.get_submodule(name)(x) for name, x in inputs.items()}

    before = answers()
    with attacked(model, attack, data):
        after = answers()
    return {n for n in before if (before[n] - after[n]).abs().max() > 1e-5 * before[n].abs().max()}
