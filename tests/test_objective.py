"""One outer step of `harden` against its objective, written out in plain PyTorch.

    F(θ) = L_harm(θ) + λ · mean_j [L_harm(θ*_j) − L_harm(θ)] + μ · L_retain(θ)
           + ν · mean_j L_retain(θ*_j)

The reference shares no code with the method. It watches what the network is given, recovers the
noise from that, merges θ into the weights, trains the simulated users with `torch.optim` and
differentiates F with autograd. The gradient that the run used is read from its run folder: AdamW
saves its moments, and the first one is a running mean of the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from fakes import random_conditioning, tiny_model
from resalign.backend.data.batches import EncodedData
from resalign.backend.data.encoded_set import Bucket, EncodedSet
from resalign.backend.hardening.run import harden
from resalign.backend.plan.hardening import (
    AdapterConfig,
    Concept,
    FineTuneConfig,
    HardeningPlan,
    HarmConfig,
    RegulatorConfig,
)
from resalign.backend.run.folder import RunFolder
from resalign.backend.run.records import StepRecord

LAMBDA, MU, NU, CAP = 0.3, 2.0, 0.5, 4.0
RANK, ALPHA, BETA = 2, 3.0, 0.9  # BETA: share of AdamW's first moment that a step keeps
FORGET_BATCH, RETAIN_BATCH = 3, 2
USERS = (
    FineTuneConfig(name="a", data="a", optimiser="sgd", learning_rate=0.9, steps=2, batch=2),
    FineTuneConfig(
        name="b", data="b", learning_rate=3e-2, weight_decay=0.1, steps=3, schedule="linear"
    ),
    FineTuneConfig(
        name="c", data="c", optimiser="sgd", learning_rate=0.8, steps=3, schedule="cosine"
    ),
)
SETS = {name: seed for seed, name in enumerate(("bad", "retain", "a", "b", "c"), start=1)}

Theta = dict[str, Tensor]


def plan(**changes: Any) -> HardeningPlan:
    """Two steps: plain unlearning, so that θ is not the identity, and the step in question."""
    settings = {
        "concepts": (Concept("bad", prompts=("bad",)),),
        "fine_tunes": USERS, "configurations_per_step": 2,
        "adapter": AdapterConfig(rank=RANK, alpha=ALPHA),
        "outer_steps": 2, "warm_up_steps": 1, "save_every": 1,
        "learning_rate": 5e-2, "weight_decay": 0.2, "gradient_norm": 0.0,
        "resilience_weight": LAMBDA, "retain_weight": MU, "retain_after_weight": NU,
        "forget_batch": FORGET_BATCH, "retain_batch": RETAIN_BATCH, "caption_dropout": 0.0,
        "harm": HarmConfig(cap=CAP), "regulator": RegulatorConfig(enabled=False),
    }  # fmt: skip
    return HardeningPlan(**(settings | changes))


def image(name: str) -> Tensor:
    """The only latent of a set, [1, 4, 8, 8]."""
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SETS[name])) * 0.5


def caption(name: str) -> Tensor:
    """The only caption of a set, embedded: it tells whose sample the network is given."""
    return random_conditioning(1, seed=SETS[name]).context


def data() -> EncodedData:
    """One image with one caption in each set, so that only noise and timesteps are drawn."""
    empty = random_conditioning(1, 99)
    sets = {
        name: EncodedSet(
            (Bucket(image(name), torch.tensor([0]), torch.ones(1, dtype=torch.float64)),),
            (name,), random_conditioning(1, seed=seed), empty,
        )
        for name, seed in SETS.items()
    }  # fmt: skip
    return EncodedData(
        forget={"bad": sets["bad"]}, retain=sets["retain"],
        anchors={"bad": random_conditioning(1, 50)}, empty=empty,
        fine_tunes={user.data: sets[user.data] for user in USERS},
    )  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Samples as the network was given them, in float64, and the noise that is in them."""

    latents: Tensor
    timesteps: Tensor
    context: Tensor
    noise: Tensor

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.latents[part], self.timesteps[part], self.context[part], self.noise[part])


class Watch:
    """Notes all samples that a network is given where gradients are taken, by set, in order."""

    def __init__(self, model: Any) -> None:
        self.samples: list[tuple[Tensor, Tensor, Tensor]] = []
        self._alphas = model.schedule.alphas_cumprod.double()
        self._handle = model.denoiser.register_forward_pre_hook(self._note)

    def _note(self, _: Any, given: tuple[Any, ...]) -> None:
        latents, timesteps, context = given[:3]
        if torch.is_grad_enabled():
            self.samples += zip(
                latents.detach().clone(), timesteps.expand(len(latents)), context, strict=True
            )

    def of(self, name: str) -> Batch:
        known = caption(name)[0].double()
        found = [sample for sample in self.samples if torch.equal(sample[2].double(), known)]
        latents, timesteps, context = (torch.stack(part) for part in zip(*found, strict=True))
        alpha = self._alphas[timesteps].view(-1, 1, 1, 1)
        noise = (latents - alpha.sqrt() * image(name).double()) / (1 - alpha).sqrt()
        return Batch(latents, timesteps, context, noise)


@dataclass(frozen=True)
class Seen:
    """The second step of a run: θ before and after, AdamW's moments before, what was drawn.

    gradient: of all that the step descends, as AdamW was given it.
    """

    theta: Theta
    after: Theta
    moments: tuple[list[Tensor], list[Tensor]]
    gradient: Theta
    record: StepRecord
    watch: Watch


def second_step(hardening_plan: HardeningPlan, folder: Path, dtype: Any = torch.float64) -> Seen:
    model, states = tiny_model(dtype=dtype), []
    watch = Watch(model)

    def keep(progress: Any) -> None:
        if progress.values:  # between two steps, each of which is saved
            with RunFolder.open(folder, read_only=True) as opened:
                states.append(opened.load_state()[1])
            if progress.step == 1:
                watch.samples.clear()

    result = harden(model, hardening_plan, run_folder=folder, data=data(), on_progress=keep)
    names = list(result.adapter.tensors)
    (theta, first, squares), (after, second, _) = (
        (
            {name: state["theta." + name] for name in names},
            [state[f"exp_avg.{place}"] for place in range(len(names))],
            [state[f"exp_avg_sq.{place}"] for place in range(len(names))],
        )
        for state in states
    )
    gradient = {
        name: (now - BETA * before) / (1 - BETA)
        for name, now, before in zip(names, second, first, strict=True)
    }
    return Seen(theta, after, (first, squares), gradient, result.records[1], watch)


class Reference:
    """The losses of θ, on a network of its own into which θ is merged."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.unet = tiny_model(dtype=dtype).denoiser
        self.weights = dict(self.unet.named_parameters())

    def predict(self, theta: Theta, batch: Batch) -> Tensor:
        merged = {}
        for name, a in theta.items():
            if name.endswith(".lora_A.weight"):
                weight, b = name.replace("lora_A.", ""), theta[name.replace("lora_A", "lora_B")]
                merged[weight] = self.weights[weight] + ALPHA / RANK * b @ a
        given = batch.latents, batch.timesteps, batch.context
        return functional_call(self.unet, merged, given).sample

    def errors(self, theta: Theta, batch: Batch) -> Tensor:
        return (self.predict(theta, batch) - batch.noise).square().mean(dim=(1, 2, 3))

    def harm(self, theta: Theta, batch: Batch) -> Tensor:
        return -(CAP * torch.tanh(self.errors(theta, batch) / CAP)).mean()

    def retain(self, theta: Theta, batch: Batch) -> Tensor:
        return (self.predict(theta, batch) - self.predict({}, batch)).square().mean()

    def fine_tuned(self, theta: Theta, user: FineTuneConfig, samples: Batch) -> Theta:
        """Where the user ends who starts at θ and meets the samples a batch at a time."""
        trained = {name: part.detach().clone().requires_grad_() for name, part in theta.items()}
        kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
        optimiser = kinds[user.optimiser](
            trained.values(), lr=user.learning_rate, weight_decay=user.weight_decay
        )
        for step in range(user.steps):
            done = step / user.steps
            share = {
                "constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2
            }[user.schedule]  # fmt: skip
            optimiser.param_groups[0]["lr"] = user.learning_rate * share
            batch = samples[step * user.batch : (step + 1) * user.batch]
            optimiser.zero_grad()
            self.errors(trained, batch).mean().backward()
            optimiser.step()
        return {name: part.detach() for name, part in trained.items()}


def in_one(gradient: Theta | tuple[Tensor, ...]) -> Tensor:
    parts = gradient.values() if isinstance(gradient, dict) else gradient
    return torch.cat([part.flatten() for part in parts])


def drawn(seen: Seen) -> list[FineTuneConfig]:
    """The users of the step."""
    return [next(u for u in USERS if u.name == s.name) for s in seen.record.simulations]


def outer_batches(seen: Seen) -> tuple[Batch, Batch]:
    """The concept's and the retained samples: at θ and at each θ* they must be the same."""
    batches = []
    for name, size in (("bad", FORGET_BATCH), ("retain", RETAIN_BATCH)):
        found = seen.watch.of(name)
        assert len(found.latents) == size * (1 + len(seen.record.simulations))
        for start in range(size, len(found.latents), size):
            assert torch.equal(found.latents[start : start + size], found.latents[:size])
            assert torch.equal(found.timesteps[start : start + size], found.timesteps[:size])
        batches.append(found[:size])
    return batches[0], batches[1]


@pytest.mark.parametrize(
    "changes",
    [{}, {"users_at_once": 2}, {"micro_batch": 1}],
    ids=["one user after the other", "users side by side", "in micro-batches"],
)
def test_the_gradient_of_a_step_is_that_of_the_stated_objective(tmp_path, changes):
    """J = 2, first order: θ*_j moves with θ one to one."""
    seen, reference = second_step(plan(**changes), tmp_path), Reference()
    theta = {name: part.requires_grad_() for name, part in seen.theta.items()}
    forget, retained = outer_batches(seen)
    ends = [
        reference.fine_tuned(seen.theta, user, seen.watch.of(user.data)) for user in drawn(seen)
    ]
    assert len(ends) == 2
    stars = [
        {name: part + (end[name] - part).detach() for name, part in theta.items()} for end in ends
    ]

    def mean(loss: Callable[[Theta], Tensor]) -> Tensor:
        return sum(loss(star) for star in stars) / len(stars)

    harm, retain = reference.harm(theta, forget), reference.retain(theta, retained)
    terms = {
        "harm": harm,
        "resilience": LAMBDA * mean(lambda star: reference.harm(star, forget) - harm),
        "retain": MU * retain,
        "retain after": NU * mean(lambda star: reference.retain(star, retained)),
    }
    expected = torch.autograd.grad(sum(terms.values()), list(theta.values()), retain_graph=True)
    found, size = in_one(seen.gradient), in_one(expected).norm()
    torch.testing.assert_close(found, in_one(expected), rtol=1e-5, atol=1e-6 * float(size))

    for name, term in terms.items():  # none is so small that it might be wrong unnoticed
        part = torch.autograd.grad(term, list(theta.values()), retain_graph=True)
        assert in_one(part).norm() > 0.02 * size, name
    assert seen.record.harm == pytest.approx(float(harm.detach()), rel=1e-6)
    assert seen.record.retain == pytest.approx(float(retain.detach()), rel=1e-6)
    assert seen.record.gradient_norm == pytest.approx(float(size), rel=1e-6)
    for simulation, user, star in zip(seen.record.simulations, drawn(seen), stars, strict=True):
        after = float(reference.harm(star, forget).detach())
        move = in_one({name: star[name].detach() - part.detach() for name, part in theta.items()})
        assert simulation.steps == user.steps
        assert simulation.harm_after == pytest.approx(after, rel=1e-6)
        assert simulation.q == pytest.approx(after / float(harm.detach()), rel=1e-6)
        assert simulation.move == pytest.approx(float(move.norm()), rel=1e-5)


def test_a_step_is_adamws_with_the_plans_rate_and_weight_decay(tmp_path):
    seen = second_step(plan(), tmp_path)
    parts = [part.clone().requires_grad_() for part in seen.theta.values()]
    optimiser = torch.optim.AdamW(parts, lr=5e-2, weight_decay=0.2)
    for part, gradient, first, square in zip(
        parts, seen.gradient.values(), *seen.moments, strict=True
    ):
        part.grad = gradient
        optimiser.state[part] = {
            "step": torch.tensor(1.0), "exp_avg": first, "exp_avg_sq": square
        }  # fmt: skip
    optimiser.step()
    for part, after in zip(parts, seen.after.values(), strict=True):
        torch.testing.assert_close(part.detach(), after, rtol=1e-6, atol=1e-9)


def test_a_long_gradient_is_shortened_and_its_full_length_recorded(tmp_path):
    """The first step of AdamW does not depend on the gradient's length: both reach the same θ."""
    whole = second_step(plan(), tmp_path / "whole")
    limit = whole.record.gradient_norm / 2
    clipped = second_step(plan(gradient_norm=limit), tmp_path / "clipped")
    expected = in_one(whole.gradient) / 2
    torch.testing.assert_close(in_one(clipped.gradient), expected, rtol=1e-3, atol=1e-4 * limit)
    assert clipped.record.gradient_norm == pytest.approx(2 * limit, rel=1e-3)
