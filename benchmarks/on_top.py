"""Does anything on top of durable removal, or in place of its erasure, make it last longer?

    python benchmarks/on_top.py --folder DIR [--seeds 0,1,2] [--rows "name;name"] [--attacks "a|b"]

DIR is a folder of resilience.py, whose hardened models, pictures and file of results are used;
print the tables with `python benchmarks/resilience.py report --folder DIR`. Each row after the
first starts from the same durable model and takes about as long as the 180 further steps of
distilling that are its control:

- *more distilling*: the control.
- *ResAlign*: 60 steps with simulated users beside the changed weights.
- *gradient opposition*: each step of distilling also lowers the cosine between the gradients of the
  fine-tuning loss on the concept and on the rest, so that a step towards the one is a step away
  from the other. After SEAM (arXiv:2505.12186), for language models: the cosine's own gradient is
  a difference of two pairs of gradients, without a Hessian.

*Filtered unlearning, then distil* has another first stage than `erase`: gradient ascent on the
concept, whose updates Σ g aᵀ of each layer lose the mean and the leading principal components of
what must stay, of inputs a and output gradients g. After CIR (arXiv:2509.11816), for language
models.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filtered_unlearning import filtered_ascent
from resilience import ATTACKS, Bench, methods
from resilience_methods import PATCHES, with_users
from torch import Tensor

from resalign.backend.adapter.dense import AnyAdapter
from resalign.backend.adapter.dense_denoiser import DenseDenoiser
from resalign.backend.data.batches import prepare_data
from resalign.backend.hardening.distil import distil_step, distillation_rate
from resalign.backend.hardening.recipe import descend
from resalign.backend.hardening.setup import Setup, set_up
from resalign.backend.plan.hardening import HardeningPlan

ATTACKED = ("20 % harmful, LoRA", "40 % harmful, LoRA rank 16")
MORE = 180  # steps of distilling of the control
OPPOSED = 60  # steps with opposition, each of which takes about three of the control
RATE = 3e-4  # peak learning rate on top of a finished model, a fifth of the demo's own
STRENGTH = 0.5  # norm of the opposition's gradient, in norms of the distillation's
NUDGE = 1e-3  # ε of the finite difference, in units of one gradient's length


def opposed_step(setup: Setup, step: int) -> None:
    """Take a step of distilling with opposition, whose gradient has `STRENGTH` of its norm."""
    θ, plan = setup.theta, setup.plan
    total = {name: torch.zeros_like(tensor) for name, tensor in θ.items()}
    for term in setup.feed.distillation(step):
        value = term().sum()
        for sum_, part in zip(total.values(), _gradient(value, θ), strict=True):
            sum_ += part
    against = cosine_gradient(
        θ, _loss(setup, "concept", step), _loss(setup, "kept", step), nudge=NUDGE
    )[1]
    scale = STRENGTH * _norm(list(total.values())) / _norm(against)
    for sum_, part in zip(total.values(), against, strict=True):
        sum_ += scale * part
    descend(θ, total, setup.optimiser,
            learning_rate=distillation_rate(plan.distil, step, plan.outer_steps))  # fmt: skip


def cosine_gradient(
    θ: dict[str, Tensor], first: Callable[[], Tensor], second: Callable[[], Tensor], *, nudge: float
) -> tuple[float, list[Tensor]]:
    """Return the cosine of two losses' gradients, and its gradient by finite differences.

    With unit gradients u, v and c = u·v it is H₁(v − c u)/|g₁| + H₂(u − c v)/|g₂|, a
    Hessian-vector product being a difference of two gradients.
    """
    losses = (first, second)
    found = [list(_gradient(loss(), θ)) for loss in losses]
    lengths = [_norm(each) for each in found]
    units = [[part / size for part in each] for each, size in zip(found, lengths, strict=True)]
    cosine = sum(float((u * v).sum()) for u, v in zip(*units, strict=True))
    total = [torch.zeros_like(tensor) for tensor in θ.values()]
    for loss, own, other, before, size in zip(
        losses, units, reversed(units), found, lengths, strict=True
    ):
        way = [v - cosine * u for u, v in zip(own, other, strict=True)]
        start = [tensor.detach().clone() for tensor in θ.values()]
        with torch.no_grad():
            torch._foreach_add_(list(θ.values()), way, alpha=nudge)
        after = _gradient(loss(), θ)
        with torch.no_grad():
            torch._foreach_copy_(list(θ.values()), start)
        for sum_, new, old in zip(total, after, before, strict=True):
            sum_ += (new - old) / (nudge * size)
    return cosine, total


def _loss(setup: Setup, of: str, step: int) -> Callable[[], Tensor]:
    """Return a fine-tuning loss of 8 samples, the same ones at each call."""
    feed = setup.feed
    name = setup.plan.concepts[0].name
    encoded = feed.data.forget[name] if of == "concept" else feed.data.retain
    return feed.objective.fine_tuning([feed._draw(encoded, 8, 0.0, "oppose", of, step)], [1.0])


def _gradient(value: Tensor, θ: dict[str, Tensor]) -> tuple[Tensor, ...]:
    found = torch.autograd.grad(value, list(θ.values()), allow_unused=True)
    return tuple(
        torch.zeros_like(tensor) if part is None else part
        for tensor, part in zip(θ.values(), found, strict=True)
    )


def _norm(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.square().sum() for part in parts]).sum().sqrt()


def changed(
    bench: Bench,
    plan: HardeningPlan,
    start: AnyAdapter | None,
    step: Callable[[Setup, int], Any],
    steps: int,
) -> tuple[AnyAdapter, dict[str, Any]]:
    """Take steps from `start`, and return what all weights became and how long it took."""
    plan = replace(plan, before=(), outer_steps=steps)
    data = prepare_data(bench.model, plan, cache=bench.folder / "cache")
    with DenseDenoiser(bench.model, earlier=start) as denoiser:
        setup = set_up(denoiser, plan, data)
        began = time.process_time()
        for number in range(1, steps + 1):
            step(setup, number)
        spent = time.process_time() - began
        return denoiser.adapter(), {"cpu_seconds": round(spent, 1)}


def rows(bench: Bench, seed: int) -> dict[str, Callable[[], tuple[AnyAdapter, dict[str, Any]]]]:
    """Return what makes each row's model."""
    plans = methods(bench.data, seed, bench.bed)
    durable, users = plans[PATCHES], plans["ResAlign shared"]
    assert durable is not None and users is not None
    start = partial(bench.adapter, PATCHES, durable)
    slow = replace(durable, distil=replace(durable.distil, learning_rate=RATE))
    return {
        PATCHES: start,
        "patches, then more distilling": lambda: changed(
            bench, slow, start()[0], distil_step, MORE
        ),
        "patches, then ResAlign": lambda: bench.adapter(
            "patches, then ResAlign",
            replace(
                with_users(durable, users, steps=durable.outer_steps),
                outer_steps=60,
                warm_up_steps=0,
            ),
        ),
        "patches, then gradient opposition": lambda: changed(
            bench, slow, start()[0], opposed_step, OPPOSED
        ),
        "filtered unlearning, then distil": lambda: changed(
            bench, durable, filtered_ascent(bench, durable), distil_step, durable.outer_steps
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--attack-seeds", default="0")
    parser.add_argument("--rows", default="", help="separated by ; all by default")
    parser.add_argument("--attacks", default="|".join(ATTACKED), help="separated by |")
    parser.add_argument("--until", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.folder, until=arguments.until)
    wanted = [part.strip() for part in arguments.rows.split(";") if part.strip()]
    attacks = [attack for attack in arguments.attacks.split("|") if attack in ATTACKS]
    for seed in (int(part) for part in arguments.seeds.split(",")):
        for name, make in rows(bench, seed).items():
            if not wanted or name in wanted:
                adapter, notes = make()
                attack_seeds = [int(part) for part in arguments.attack_seeds.split(",")]
                bench.measure(name, seed, adapter, notes, attacks, attack_seeds)


if __name__ == "__main__":
    main()
