"""The peak of a run, by running its code on tensors without memory.

The denoiser is built on the meta device, and one outer step of `harden` itself runs on it: all
losses, their gradients, the simulated user, the solve, AdamW. Only how often things are repeated is
cut down, as no repetition adds memory: two inner steps (the second has the optimiser's moments) and
one product of the solve. Tensors drawn on the CPU are real.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..adapter.apply import AdaptedDenoiser
from ..data.batches import EncodedData
from ..data.encoded_set import Bucket, EncodedSet
from ..families import Family
from ..hardening import run as engine
from ..model.denoiser import Conditioning
from ..model.model import Model
from ..model.quantised import quantised
from ..plan.hardening import RETAIN, Concept, FineTuneConfig, HardeningPlan, RegulatorConfig
from ..progress import silent
from .as_on_gpu import as_on_gpu
from .meta import MetaMemory
from .tracker import LiveMemory
from .weights import HALVES

BLOCK = 512  # bytes: what CUDA's caching allocator rounds up to
_CONCEPT = "concept"


@dataclass(frozen=True, slots=True)
class Trace:
    """Bytes at the peak of an outer step.

    weights: of the denoiser. state: what outlives a pass: adapter, gradients, moments, copies, the
    batches at hand. activations: of the pass at the peak, with the gradients it makes.
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
    """The peak of one outer step of `plan` on this network, as on a GPU.

    Args:
        config: of the denoiser.
        side: of the latents.
        dtype: of the denoiser's weights.
    """
    model = meta_model(config, family, side, dtype)
    with as_on_gpu(HALVES.get(plan.precision)):
        return measure_step(model, plan, random_data(model, side), MetaMemory(block=BLOCK))


def meta_model(config: Mapping[str, Any], family: Family, side: int, dtype: torch.dtype) -> Model:
    """Build a model whose denoiser has no memory, and which has nothing else."""
    with torch.device("meta"):
        denoiser = family.networks.build(family.denoiser, config)
    torch.nn.Module.to(denoiser, dtype).eval()  # diffusers' own `to` warns of each cast
    schedule = family.process("the published config", family.config("scheduler"))
    pixels = family.latents.space({}).stride * side
    return Model(family, denoiser, (), (), None, schedule, pixels)  # type: ignore[arg-type]


def measure_step(model: Model, plan: HardeningPlan, data: EncodedData, memory: LiveMemory) -> Trace:
    """Run the representative step of `plan` under the tracker, on whatever the model lies on."""
    plan, waiting = representative(plan)
    with quantised(model, plan.quantization), memory:
        weights = memory.count([*model.denoiser.parameters(), *model.denoiser.buffers()])
        with _Marking(model, plan.adapter, precision=plan.precision) as denoiser:
            assert isinstance(denoiser, _Marking)
            denoiser.memory = memory
            denoiser.training(plan.gradient_checkpointing)
            held = _bases(denoiser, model.family) if plan.method == "project" else []
            if plan.method == "project":  # once its bases are there, a step is that without users
                plan = replace(plan, method="resalign")
            run = engine._Run(denoiser, plan, data, None, silent)
            if plan.method == "closed_form":  # no graph: what the edit does to harm and retention
                with torch.no_grad():
                    for loss in (run.feed.harm(1).loss, run.feed.retain(1)):
                        loss()
                return Trace(weights, memory.peak_base - weights, memory.peak - memory.peak_base)
            # AdamW's moments are there from the first step on, and the gradients of the users
            # before this one wait for the mean.
            for tensor in run.theta.values():
                tensor.grad = torch.zeros_like(tensor)
            run.optimiser.step()
            run.optimiser.zero_grad(set_to_none=True)
            waits = [torch.zeros_like(t) for _ in range(waiting) for t in run.theta.values()]
            run.outer_step(1)
            del waits, held
    return Trace(weights, memory.peak_base - weights, memory.peak - memory.peak_base)


def _bases(denoiser: AdaptedDenoiser, family: Family) -> list[Tensor]:
    """What a projection holds at most: of each distinct input of the layers a whole basis.

    How much less it is, the inputs' values decide. Q, K and V are given one tensor, and all K and V
    of the cross-attention the same text.
    """
    found: dict[tuple[str, int], Tensor] = {}
    for name, module in denoiser.modules.items():
        width, device = module.in_features, module.weight.device
        text = re.search(family.text_input, "." + name)
        key = ("text" if text else name.rpartition(".")[0], width)
        if key not in found:
            found[key] = torch.zeros(width, width, device=device)
    return list(found.values())


class _Marking(AdaptedDenoiser):
    """Tells the tracker where a pass begins, unless it joins a graph that is still growing."""

    memory: LiveMemory
    _open = False

    def __call__(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if not self._open:
            self.memory.mark()
        predicted = super().__call__(latents, timesteps, conditioning)
        if predicted.requires_grad:
            self._open = True
            predicted.register_hook(self._close)
        return predicted

    def _close(self, _: Tensor) -> None:
        self._open = False

    def _mixed(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if device.type == "meta" else super()._mixed(device)


def representative(plan: HardeningPlan) -> tuple[HardeningPlan, int]:
    """The plan with the user that takes most memory, shortened (or with as many such as share a
    pass), and how many go before."""
    pool = plan.fine_tunes if plan.method == "resalign" else ()  # the others simulate nobody
    group = min(plan.users_at_once, plan.configurations_per_step)
    users = sorted(pool, key=lambda user: _weight(plan, user))[-group:]
    most = 2 * plan.micro_batch or 4096  # a third micro-batch is like the second
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
    changed = replace(
        plan, concepts=(Concept(_CONCEPT, prompts=(_CONCEPT,)),), fine_tunes=short, solver=solver,
        forget_batch=min(plan.forget_batch, most), retain_batch=min(plan.retain_batch, most),
        configurations_per_step=max(1, len(short)), outer_steps=1, warm_up_steps=0,
        regulator=RegulatorConfig(enabled=False),
    )  # fmt: skip
    return changed, plan.configurations_per_step - len(users) if users else 0


def _weight(plan: HardeningPlan, user: FineTuneConfig) -> tuple[bool, int, int, bool]:
    """Orders users by the memory they take."""
    everything = plan.simulate == "full" or (plan.simulate == "adapter" and user.method == "full")
    samples = user.batch * (2 if user.method == "dreambooth" else 1)
    return everything, samples, user.rank, user.optimiser == "adamw"


def random_data(model: Model, side: int, samples: int = 8) -> EncodedData:
    """Encoded sets of the right shapes on the CPU, of the names that `representative` gives."""
    family, config = model.family, model.denoiser.config
    empty = family.texts.blank(config)
    told = family.texts.of_samples([((0, 0), (0, 0), (0, 0))] * samples)
    bucket = Bucket(
        torch.zeros(samples, model.latent_space.channels, side, side),
        torch.zeros(samples, dtype=torch.long),
        torch.ones(samples, dtype=torch.float64),
        told,
    )
    data = EncodedSet((bucket,), ("",), empty, empty)
    anchor = empty.beside(told[:1])
    return EncodedData({_CONCEPT: data}, data, {_CONCEPT: anchor}, anchor, {RETAIN: data})
