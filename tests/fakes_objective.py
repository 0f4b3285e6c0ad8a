"""A hardening step that is watched from outside, and its losses written out in plain PyTorch.

The reference shares no code with the method. It notes what the network is given, recovers the
noise from that, merges θ into the weights and trains the simulated users with `torch.optim`. The
gradient that a run used is read from its run folder: AdamW saves its moments, and the first one
is a running mean of the gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fakes import random_conditioning, tiny_model
from resalign.backend.data.batches import EncodedData
from resalign.backend.data.encoded_set import Bucket, EncodedSet
from resalign.backend.hardening.run import harden
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.harm import HarmConfig
from resalign.backend.plan.regulator import RegulatorConfig
from resalign.backend.run.folder import RunFolder
from resalign.backend.run.records import StepRecord

LAMBDA, MU, NU, CAP = 0.3, 2.0, 0.5, 4.0
RANK, ALPHA, BETA = 2, 3.0, 0.9  # BETA: share of AdamW's first moment that a step keeps
SETS = {name: seed for seed, name in enumerate(("bad", "worse", "retain", "a", "b", "c"), start=1)}
ANCHORS = {"bad": 50, "worse": 51}
USERS = (
    FineTuneConfig(name="a", data="a", optimiser="sgd", learning_rate=0.9, steps=2, batch=2),
    FineTuneConfig(
        name="b", data="b", learning_rate=3e-2, weight_decay=0.1, steps=3, schedule="linear"
    ),
    FineTuneConfig(
        name="c", data="c", optimiser="sgd", learning_rate=0.8, steps=3, schedule="cosine"
    ),
)

Weights = dict[str, Tensor]


def plan(**changes: Any) -> HardeningPlan:
    """Two steps: plain unlearning, so that θ is not the identity, and the step in question."""
    settings = {
        "concepts": (Concept("bad", prompts=("bad",)),),
        "fine_tunes": USERS, "configurations_per_step": 2,
        "adapter": AdapterConfig(rank=RANK, alpha=ALPHA),
        "outer_steps": 2, "warm_up_steps": 1, "save_every": 1,
        "learning_rate": 5e-2, "weight_decay": 0.2, "gradient_norm": 0.0,
        "resilience_weight": LAMBDA, "retain_weight": MU, "retain_after_weight": NU,
        "forget_batch": 3, "retain_batch": 2, "caption_dropout": 0.0,
        "harm": HarmConfig(cap=CAP), "regulator": RegulatorConfig(enabled=False),
    }  # fmt: skip
    return HardeningPlan(**(settings | changes))


def image(name: str) -> Tensor:
    """The only latent of a set, [1, 4, 8, 8]."""
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SETS[name])) * 0.5


def caption(name: str) -> Tensor:
    """The only caption of a set, embedded: it tells whose sample the network is given."""
    return random_conditioning(1, seed=SETS[name])["context"]


def is_of(name: str, context: Tensor) -> bool:
    """True if a sample with this context is of the set."""
    return torch.equal(context.float(), caption(name)[0])


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
        forget={name: sets[name] for name in ANCHORS}, retain=sets["retain"],
        anchors={name: random_conditioning(1, seed) for name, seed in ANCHORS.items()},
        empty=empty, fine_tunes={user.data: sets[user.data] for user in USERS},
    )  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Samples as the network was given them, and the noise that is in them."""

    latents: Tensor
    timesteps: Tensor
    context: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, part: slice | Tensor) -> Batch:
        return Batch(self.latents[part], self.timesteps[part], self.context[part], self.noise[part])

    def within(self, other: Batch) -> Tensor:
        """Which samples are among the other's, [batch]."""
        return torch.stack([(other.latents == own).flatten(1).all(1).any() for own in self.latents])


class Watch:
    """Notes all samples that a network is given where gradients are taken, in order.

    fresh: by user, the weights of a LoRA that is not θ where that user's training begins.
    """

    def __init__(self, model: Any) -> None:
        self.samples: list[tuple[Tensor, Tensor, Tensor]] = []
        self.fresh: dict[str, Weights] = {}
        self._unet = model.denoiser
        self._alphas = model.process.alphas_cumprod.double()
        model.denoiser.register_forward_pre_hook(self._note)

    def _note(self, _: Any, given: tuple[Any, ...]) -> None:
        latents, timesteps, context = given[:3]
        if torch.is_grad_enabled():
            self.samples += zip(
                latents.detach().clone(), timesteps.expand(len(latents)), context, strict=True
            )
            for user in USERS:
                if user.name not in self.fresh and is_of(user.data, context[0]):
                    self.fresh[user.name] = {
                        f"{name.partition('.lora_')[0]}.user_{name.partition('.lora_')[2][0]}":
                            part.detach().clone()
                        for name, part in self._unet.named_parameters()
                        if ".lora_" in name and user.rank in part.shape
                    }  # fmt: skip

    def of(self, name: str) -> Batch:
        """Those of one set."""
        found = [sample for sample in self.samples if is_of(name, sample[2])]
        latents, timesteps, context = (torch.stack(part) for part in zip(*found, strict=True))
        alpha = self._alphas[timesteps].view(-1, 1, 1, 1)
        noise = (latents.double() - alpha.sqrt() * image(name)) / (1 - alpha).sqrt()
        return Batch(latents, timesteps, context, noise.to(latents.dtype))


@dataclass(frozen=True)
class Seen:
    """The second step of a run: θ before and after, AdamW's moments before, what was drawn.

    gradient: of all that the step descends, as AdamW was given it.
    """

    plan: HardeningPlan
    theta: Weights
    after: Weights
    moments: tuple[list[Tensor], list[Tensor]]
    gradient: Weights
    record: StepRecord
    watch: Watch

    @property
    def users(self) -> list[FineTuneConfig]:
        """Those that the step has drawn."""
        pool = {user.name: user for user in self.plan.fine_tunes}
        return [pool[simulation.name] for simulation in self.record.simulations]


def second_step(
    hardening_plan: HardeningPlan, folder: Path, dtype: torch.dtype = torch.float64
) -> Seen:
    """Harden for the plan's two steps and return all that is to be known of the second."""
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
    moments = first, squares
    return Seen(hardening_plan, theta, after, moments, gradient, result.records[1], watch)


class Reference:
    """The losses of a step that was watched, on a network of its own with θ merged into it.

    Weights are θ's, or θ's with what else a user has trained: a LoRA (`user_A`, `user_B`) or the
    network's own.
    """

    def __init__(self, seen: Seen, dtype: torch.dtype = torch.float64) -> None:
        self.denoiser = tiny_model(dtype=dtype).denoiser
        self.own = {name: part.detach() for name, part in self.denoiser.named_parameters()}
        self.seen, self.config = seen, seen.plan.harm
        everyone = 1 + len(seen.users)
        self.forget: dict[str, Batch] = {}
        for concept in seen.plan.concepts:
            # The batch is met at θ first, and once more at each θ*.
            found = seen.watch.of(concept.name)
            first = max(n for n in range(9) if found.within(found[:n]).sum() == n * everyone)
            self.forget[concept.name] = found[:first]
        assert sum(map(len, self.forget.values())) == seen.plan.forget_batch
        kept = seen.watch.of("retain")
        self.kept = kept[: seen.plan.retain_batch]
        assert bool(kept.within(self.kept).all())
        self.original = self.predict({}, self.kept)
        self.targets = {name: self.redirected(name) for name in self.forget}

    def predict(self, weights: Weights, batch: Batch) -> Tensor:
        merged = {name: weights.get(name, own) for name, own in self.own.items()}
        for name, a in weights.items():
            if name.endswith(".lora_A.weight"):
                b = weights[name.replace("lora_A", "lora_B")]
                weight = name.replace("lora_A.", "")
                merged[weight] = merged[weight] + ALPHA / RANK * b @ a
            if name.endswith(".user_A"):  # whose alpha is its rank
                weight, b = name.replace("user_A", "weight"), weights[name.replace("_A", "_B")]
                merged[weight] = merged[weight] + b @ a
        given = batch.latents, batch.timesteps, batch.context
        return functional_call(self.denoiser, merged, given).sample

    def errors(self, weights: Weights, batch: Batch) -> Tensor:
        return (self.predict(weights, batch) - batch.noise).square().mean(dim=(1, 2, 3))

    def redirected(self, name: str) -> Tensor:
        """The redirect loss's target of a concept: beyond the anchor, away from the concept."""
        batch, anchor = self.forget[name], random_conditioning(1, ANCHORS[name])["context"]
        towards = replace(batch, context=anchor.to(batch.context).expand(len(batch), -1, -1))
        concept, anchor = self.predict({}, batch), self.predict({}, towards)
        return anchor - self.config.guidance * (concept - anchor)

    def harm(self, weights: Weights) -> Tensor:
        """L_harm: a mean over the samples of all concepts."""
        samples = []
        for name, batch in self.forget.items():
            if self.config.loss == "ascent":
                cap = self.config.cap
                samples.append(-cap * torch.tanh(self.errors(weights, batch) / cap))
                continue
            target = self.targets[name]
            samples.append((self.predict(weights, batch) - target).square().mean(dim=(1, 2, 3)))
        return torch.cat(samples).mean()

    def retain(self, weights: Weights) -> Tensor:
        """L_retain: the distance to what the original network predicts."""
        return (self.predict(weights, self.kept) - self.original).square().mean()

    def fine_tuning(self, weights: Weights, user: FineTuneConfig, step: int) -> Tensor:
        """L_ft of an inner step, from 0: the batch, part of it the concept's, and the prior."""
        harmful = int(user.batch * user.concept_share)
        parts = [(user.data, user.batch - harmful, (user.batch - harmful) / user.batch)]
        if harmful:
            parts.append(("bad", harmful, harmful / user.batch))
        if user.method == "dreambooth":
            parts.append((user.prior_data, user.batch, user.prior_weight))
        total = torch.zeros(())
        for name, count, weight in parts:
            met = self.seen.watch.of(name)
            if name in self.forget:
                met = met[~met.within(self.forget[name])]
            batch = met[step * count : (step + 1) * count]
            total = total + weight * self.errors(weights, batch).mean()
        return total

    def start(self, theta: Weights, user: FineTuneConfig) -> Weights:
        """The tensors that the user trains, as they are before."""
        if self.seen.plan.simulate == "shared":
            return theta
        if self.seen.plan.simulate == "full" or user.method == "full":
            return self.own
        fresh = self.seen.watch.fresh[user.name]
        assert fresh and not any(part.any() for name, part in fresh.items() if name[-1] == "B")
        return fresh

    def fine_tuned(self, theta: Weights, user: FineTuneConfig, *, gamma: float = 0.0) -> Weights:
        """The tensors that the user has trained in the end; the proximal problem's with `gamma`."""
        start = self.start(theta, user)
        fixed = {name: part.detach() for name, part in theta.items()}
        trained = {name: part.detach().clone().requires_grad_() for name, part in start.items()}
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
            loss = self.fine_tuning({**fixed, **trained}, user, step)
            if gamma:
                moves = ((part - start[name].detach()) for name, part in trained.items())
                loss = loss + sum(move.square().sum() for move in moves) / (2 * gamma)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return {name: part.detach() for name, part in trained.items()}


def in_one(parts: Any) -> Tensor:
    """All tensors as one vector."""
    parts = parts.values() if isinstance(parts, dict) else parts
    return torch.cat([part.flatten() for part in parts])
