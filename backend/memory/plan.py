"""Predicts the memory that a plan needs, and finds the cheapest change that makes it fit.

Changes are tried in the order of their cost: users one after the other instead of side by side and
micro-batches (a little time), gradient checkpointing (about a third more time), Hessian products by
differences (another amount of time; they differ in the fourth digit), bf16 (faster on a GPU, rounds
more), and last, on top of the others, the linear layers in 8 and 4 bits (the adapter is then
trained beside quantised weights). Where all weights are trained, the frozen copy of the original
comes in half precision, then the passes, and last gradients and AdamW's moments wait in main
memory; no weight is quantised. Nothing else of a plan changes: its batches, users and losses stay.

The prediction adds a margin for what the trace cannot see: the context of CUDA, workspaces of cuDNN
and of attention, and fragments that the allocator cannot use. The margin is a guess: there was no
GPU to measure it on (docs/memory.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from ..bilevel.hypergradient import differentiates_twice
from ..families import Family, find_family
from ..hardening.stages import stage_plans
from ..model.precision import decided_on
from ..numerics.byte_sizes import GIB
from ..plan.auto import micro_batch_of, users_at_once_of
from ..plan.hardening import HardeningPlan
from ..plan.methods import FACTS, changes_all_weights, methods_of
from ..plan.quantization import QUANTIZATIONS, can_quantize
from .encoding import trace_encoding
from .fit import largest_batch
from .prediction import MemoryPlan
from .trace import Trace, trace_step
from .weights import needs_fp32, weight_types
from .words import changes_of, sentence, traded

# What CUDA and its libraries hold beside tensors: 701 MiB on an H200 (docs/gpu.md), and up to 200
# that cuBLAS and cuDNN take from PyTorch as workspaces
CONTEXT = 0.9 * GIB
FRAGMENTS = 0.1  # share of everything that is not weights


def plan_memory(
    plan: HardeningPlan,
    family: Family | str,
    *,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    resolution: int = 0,
    stored_in_half: bool = True,
    budget: float | None = None,
    quantized: bool = True,
    on_try: Callable[[str], None] = lambda changes: None,
) -> MemoryPlan:
    """Predict the peak of a hardening run; with a budget, the cheapest plan that fits.

    No weight is loaded and no GPU is needed. Takes some seconds, and more where changes are tried;
    a repeated question is answered from a cache.

    Args:
        plan: an `auto` in it counts as what the GPU here makes of it, or the CPU where there is
            none; users in turn, and whole batches.
        family: of the model, or its name.
        configs: of the networks, by component; the published sizes by default.
        resolution: native side in pixels, where the plan has none.
        stored_in_half: whether text encoders and VAE are; fp32 plans load them in float32.
        budget: memory of the device in GiB. If nothing fits, the smallest setting is returned.
        quantized: whether `quantization` may change too; False where bitsandbytes is missing.
        on_try: called with the changes that are tried next, in words, before each trace of some
            seconds; raise from it to stop.
    """
    if not isinstance(family, Family):
        family = find_family(family)
    configs = configs or family.published()
    plan = decided_on(plan, "cuda" if torch.cuda.is_available() else "cpu")
    pixels = plan.resolution or resolution or family.native_side("v_prediction")
    space = family.latents.space(configs.get(family.vae, {}))
    space.check_size(pixels, pixels)
    asked = (
        json.dumps({k: dict(v) for k, v in configs.items()}, sort_keys=True),
        family,
        pixels // space.stride,
    )

    def predict(changed: HardeningPlan) -> MemoryPlan:
        on_try(changes_of(_differences(plan, changed)))
        return _predict(changed, *asked, stored_in_half)

    first = predict(plan)
    first = replace(first, asked=first.parts, words=(sentence(first, pixels),))
    if budget is None:
        return first
    room = round(budget * GIB)
    found = _fitting(first, room, predict, quantized)
    found = replace(found, budget=room, asked=first.parts, changes=_differences(plan, found.plan))
    return replace(found, words=(*first.words, *traded(found)))


def _fitting(first: MemoryPlan, room: int, predict: Any, quantized: bool) -> MemoryPlan:
    """Return the first of the candidates that fits, or the smallest where none does."""
    smallest = first
    if first.total <= room:
        return first
    for base in _bases(first.plan, quantized):
        group = list(_cheaper(base))
        last = predict(group[-1])  # memory falls along the group: its end tells if any fits
        smallest = min(smallest, last, key=lambda found: found.total)
        if last.total > room:
            continue
        for candidate in group[:-1]:
            found = predict(candidate)
            if found.total <= room:
                return found
        return last
    return smallest


def _bases(plan: HardeningPlan, quantized: bool) -> Iterator[HardeningPlan]:
    """Yield the plan, then variants that change its results a little."""
    exact = differentiates_twice(plan.solver)
    differences = replace(plan, solver=replace(plan.solver, products="finite_difference"))
    yield plan
    last = plan
    if exact:
        yield (last := differences)
    if changes_all_weights(plan):  # trained weights stay in fp32, but not the copy beside them
        half = replace(plan.distil, teacher="bf16")
        yield replace(plan, distil=half)
        yield (last := replace(plan, distil=replace(half, teacher_waits=True)))
        if plan.precision == "fp32":
            yield (last := replace(last, precision="bf16"))
        if any(FACTS[method].distils for method in methods_of(plan)):
            exact_moments = {"optimiser": "adamw", "optimiser_waits": True}
            yield replace(last, distil=replace(last.distil, **exact_moments))
    elif plan.precision == "fp32" and not needs_fp32(replace(plan, precision="bf16")):
        yield replace(plan, precision="bf16")
        if exact:
            yield replace(differences, precision="bf16")
        last = replace(last, precision="bf16")
    if quantized and can_quantize(plan):
        for kind in QUANTIZATIONS[QUANTIZATIONS.index(plan.quantization) + 1 :]:
            yield replace(last, quantization=kind)


def _cheaper(base: HardeningPlan) -> Iterator[HardeningPlan]:
    """Yield plans with the same results to rounding, from the fastest to the smallest."""
    own = micro_batch_of(base) or largest_batch(base)
    sizes = [micro_batch_of(base)] + [size for size in (2, 1) if size < own]
    for checkpointing in sorted({base.gradient_checkpointing, True}):
        together = [users_at_once_of(base)] if users_at_once_of(base) > 1 else []
        for users, size in [*((n, 0) for n in together), *((1, size) for size in sizes)]:
            yield replace(
                base, users_at_once=users, micro_batch=size, gradient_checkpointing=checkpointing
            )


def _predict(
    plan: HardeningPlan, configs: str, family: Family, side: int, stored_in_half: bool
) -> MemoryPlan:
    step = max((_step(one, configs, family, side) for one in _traced(plan)), key=_peak_of)
    encoding = _encoding(plan, configs, family, side, stored_in_half)
    peak = max(step.peak, encoding.peak)
    weights = encoding.weights if encoding.peak > step.peak else step.weights
    return MemoryPlan(
        plan=plan, weights=step.weights, state=step.state, activations=step.activations,
        encoding=encoding.peak, margin=round(CONTEXT + FRAGMENTS * (peak - weights)), changes={},
    )  # fmt: skip


def _traced(plan: HardeningPlan) -> list[HardeningPlan]:
    """Return the plan, and those of its stages that may need more memory than its own method."""
    return [plan, *(stage for _, stage in stage_plans(plan) if FACTS[stage.method].dense)]


def _peak_of(trace: Trace) -> int:
    return trace.peak


@lru_cache(maxsize=64)
def _step(plan: HardeningPlan, configs: str, family: Family, side: int) -> Trace:
    dtype = weight_types(plan)["denoiser_dtype"] or torch.float32
    config = json.loads(configs)[family.denoiser]
    return trace_step(config, plan, family=family, side=side, dtype=dtype)


def _encoding(
    plan: HardeningPlan, configs: str, family: Family, side: int, stored_in_half: bool
) -> Trace:
    half = stored_in_half and not needs_fp32(plan)
    return _encoding_of(
        replace(plan, gradient_checkpointing=False), configs, family, side,
        torch.float16 if half else torch.float32,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _encoding_of(
    plan: HardeningPlan, configs: str, family: Family, side: int, encoders: torch.dtype
) -> Trace:
    dtype = weight_types(plan)["denoiser_dtype"] or torch.float32
    return trace_encoding(
        json.loads(configs), plan, family=family, side=side, dtype=dtype, encoders=encoders
    )


def _differences(asked: HardeningPlan, found: HardeningPlan) -> dict[str, Any]:
    names = (
        "users_at_once", "micro_batch", "gradient_checkpointing", "precision", "quantization",
    )  # fmt: skip
    changes = {n: getattr(found, n) for n in names if getattr(found, n) != getattr(asked, n)}
    if found.solver.products != asked.solver.products:
        changes["solver.products"] = found.solver.products
    for name in ("teacher", "teacher_waits", "optimiser", "optimiser_waits"):
        if getattr(found.distil, name) != getattr(asked.distil, name):
            changes[f"distil.{name}"] = getattr(found.distil, name)
    return changes
