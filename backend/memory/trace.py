"""Measures the peak of a run by running its code on tensors without memory.

The denoiser is built on the meta device, and one outer step of `harden` itself runs on it: all
losses, their gradients, the simulated user, the solve, AdamW. Only repetitions are left out, as
they add no memory: two inner steps are enough (the second has the optimiser's moments), and one
product of the solve. Tensors drawn on the CPU are real.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batches import EncodedData
from ..data.encoded_set import Bucket, EncodedSet
from ..families import Family
from ..hardening.methods import read_plan
from ..hardening.setup import adapted, set_up
from ..model.model import Model
from ..model.precision import decided_on
from ..model.quantised import quantised
from ..plan.auto import micro_batch_of, users_at_once_of
from ..plan.concept import Concept
from ..plan.fine_tune import RETAIN, FineTuneConfig
from ..plan.hardening import HardeningPlan
from ..plan.regulator import RegulatorConfig
from .as_on_gpu import as_on_gpu
from .meta import MetaMemory
from .tracker import LiveMemory
from .weights import HALVES

BLOCK = 512  # bytes: what CUDA's caching allocator rounds up to
_CONCEPT = "concept"


@dataclass(frozen=True, slots=True)
class Trace:
    """Bytes at the peak of an outer step.

    weights: of the denoiser. state: what outlives a pass, that is adapter, gradients, moments,
    copies and the current batches. activations: of the pass at the peak, with its gradients.
    """

    weights: int
    state: int
    activations: int

    @property
    def peak(self) -> int:
        return self.weights + self.state + self.activations


def trace_step(
    config: Mapping[str, Any],
    plan: HardeningPlan,
    *,
    family: Family,
    side: int,
    dtype: torch.dtype,
) -> Trace:
    """Predict the peak of one outer step of `plan` on this network, as on a GPU.

    Args:
        config: of the denoiser.
        side: of the latents.
        dtype: of the denoiser's weights.
    """
    model = meta_model(config, family, side, dtype)
    with as_on_gpu(HALVES.get(plan.precision)):
        return measure_step(model, plan, random_data(model, side), MetaMemory(block=BLOCK))


def meta_model(config: Mapping[str, Any], family: Family, side: int, dtype: torch.dtype) -> Model:
    """Build a model of nothing but a denoiser, which takes no memory.

    Raises:
        DataError: the denoiser's patches do not fit into the latents.
    """
    space = family.latents.space({})
    pixels = space.stride * side
    space.check_size(pixels, pixels)
    with torch.device("meta"):
        denoiser = family.networks.build(family.denoiser, config)
    torch.nn.Module.to(denoiser, dtype).eval()  # diffusers' own `to` warns of each cast
    schedule = family.process("the published config", family.config("scheduler"))
    return Model(family, denoiser, (), (), None, schedule, pixels)  # type: ignore[arg-type]


def measure_step(model: Model, plan: HardeningPlan, data: EncodedData, memory: LiveMemory) -> Trace:
    """Run the representative step of `plan` under the tracker, on the device of `model`."""
    method, plan = read_plan(representative(decided_on(plan, model.device)))
    with quantised(model, plan.quantization), memory:
        weights = memory.count([*model.denoiser.parameters(), *model.denoiser.buffers()])
        with adapted(model, plan) as denoiser, _marking(model.denoiser, memory):
            denoiser.training(plan.gradient_checkpointing)
            setup = set_up(denoiser, plan, data)
            held = method.held(setup)
            method.rehearse(setup)
            del held
    return Trace(weights, memory.peak_base - weights, memory.peak - memory.peak_base)


@contextmanager
def _marking(network: nn.Module, memory: LiveMemory) -> Iterator[None]:
    """Mark where each pass begins, unless it joins a graph that is still growing."""
    growing = False

    def begin(*_: object) -> None:
        if not growing:
            memory.mark()

    def end(_: object, __: object, output: Any) -> None:
        nonlocal growing
        first = output[0]  # of some transformers a list, with a tensor for each sample
        predicted: Tensor = first[0] if isinstance(first, list) else first
        if predicted.requires_grad:
            growing = True
            predicted.register_hook(release)

    def release(_: Tensor) -> None:
        nonlocal growing
        growing = False

    handles = [network.register_forward_pre_hook(begin), network.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def representative(plan: HardeningPlan) -> HardeningPlan:
    """Shorten the plan to the user who takes most memory, or as many as share a pass."""
    _, read = read_plan(plan)  # without the users of a method that simulates nobody
    group = min(users_at_once_of(plan), plan.configurations_per_step)
    users = sorted(read.fine_tunes, key=lambda user: _weight(plan, user))[-group:]
    most = 2 * micro_batch_of(plan) or 4096  # a third micro-batch is like the second
    short = tuple(
        replace(
            user,
            name=f"user {number}",
            steps=2,
            data=RETAIN,
            prior_data=RETAIN,
            batch=min(user.batch, most),
        )
        for number, user in enumerate(users)
    )
    solver = replace(plan.solver, iterations=1)
    if solver.method in ("cg", "minres"):  # their vectors are on the CPU, their products the same
        solver = replace(solver, method="richardson")
    return replace(
        plan, concepts=(Concept(_CONCEPT, prompts=(_CONCEPT,)),), fine_tunes=short, solver=solver,
        forget_batch=min(plan.forget_batch, most), retain_batch=min(plan.retain_batch, most),
        configurations_per_step=max(1, len(short)), outer_steps=1, warm_up_steps=0,
        regulator=RegulatorConfig(enabled=False),
        # both parts of a step's batch keep two micro-batches
        distil=replace(plan.distil, batch=min(plan.distil.batch, 8 * micro_batch_of(plan) or 4096)),
    )  # fmt: skip


def _weight(plan: HardeningPlan, user: FineTuneConfig) -> tuple[bool, int, int, bool]:
    """Order users by the memory that they take."""
    everything = plan.simulate == "full" or (plan.simulate == "adapter" and user.method == "full")
    samples = user.batch * (2 if user.method == "dreambooth" else 1)
    return everything, samples, user.rank, user.optimiser == "adamw"


def random_data(model: Model, side: int, samples: int = 8) -> EncodedData:
    """Make encoded sets of the right shapes on the CPU, named as `representative` names them."""
    family, config = model.family, model.denoiser.config
    empty = family.texts.blank(config)
    own = family.texts.of_samples([((0, 0), (0, 0), (0, 0))] * samples)
    bucket = Bucket(
        torch.zeros(samples, model.latent_space.channels, side, side),
        torch.zeros(samples, dtype=torch.long),
        torch.ones(samples, dtype=torch.float64),
        own,
    )
    data = EncodedSet((bucket,), ("",), empty, empty)
    anchor = empty.beside(own[:1])
    return EncodedData({_CONCEPT: data}, data, {_CONCEPT: anchor}, anchor, {RETAIN: data})
