"""Stage `memory`: the peak of an outer step, measured and predicted.

On CUDA the measured peak is `torch.cuda.max_memory_allocated` of two outer steps in a model of
random weights; on a CPU it is the bytes of live tensors that the planner's tracker counts, which
rehearses the code and says nothing of a GPU. The prediction is the planner's for an outer step: it
should be near what is allocated and never below it, and with its margin above what is reserved.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gpu_stages.models import denoiser_model, fakes_checkpoint
from gpu_stages.steps import plan_of
from resalign.backend.families import find_family
from resalign.backend.hardening.methods import read_plan
from resalign.backend.hardening.setup import adapted, set_up
from resalign.backend.memory.plan import CONTEXT, FRAGMENTS
from resalign.backend.memory.trace import Trace, measure_step, random_data, trace_step
from resalign.backend.memory.tracker import LiveMemory
from resalign.backend.memory.weights import weight_types

MIB = 2**20
Case = tuple[str, int, dict[str, Any]]  # family, pixels, changes of the plan
CASES: list[Case] = [
    ("sd1", 512, {"precision": "bf16"}),
    ("sd1", 512, {"precision": "fp32"}),
    ("sd1", 512, {"precision": "bf16", "micro_batch": 1}),
    ("sd1", 512, {"precision": "bf16", "gradient_checkpointing": True}),
    ("sd1", 512, {"precision": "bf16", "users_at_once": 2}),
    ("sd1", 1024, {"precision": "bf16", "micro_batch": 1}),
    ("sd2", 512, {"precision": "bf16"}),
    ("sd2", 1024, {"precision": "bf16", "micro_batch": 1}),
    ("sdxl", 512, {"precision": "bf16", "micro_batch": 1}),
    ("sdxl", 1024, {"precision": "bf16", "micro_batch": 1}),
    ("sdxl", 1024, {"precision": "bf16", "micro_batch": 1, "gradient_checkpointing": True}),
    ("sdxl", 1024, {"precision": "fp32", "micro_batch": 1, "gradient_checkpointing": True}),
    ("sd1", 512, {"precision": "bf16", "method": "distil"}),
    ("sdxl", 1024, {"precision": "bf16", "method": "distil", "micro_batch": 1}),
    ("flux2_klein", 1024, {"precision": "bf16", "micro_batch": 1}),
]


def run(device: str, small: bool, out: Path, tell: Any) -> None:
    cases = [CASES[0], CASES[3], CASES[12]] if small else CASES
    if small:
        measure(cases, [done(predicted(*case, small)) for case in cases], device, small, tell)
        return
    spare = max(1, min(6, (os.cpu_count() or 1) - 2))
    with ProcessPoolExecutor(spare, multiprocessing.get_context("spawn")) as pool:
        predictions = [pool.submit(predicted, *case, small) for case in cases]
        measure(cases, predictions, device, small, tell)


def done(trace: Trace) -> Future[Trace]:
    future: Future[Trace] = Future()
    future.set_result(trace)
    return future


def measure(
    cases: list[Case], predictions: list[Future[Trace]], device: str, small: bool, tell: Any
) -> None:
    for (family, pixels, changes), prediction in zip(cases, predictions, strict=True):
        case = ", ".join([f"{family} at {pixels}", *(f"{k} {v}" for k, v in changes.items())])
        try:
            found = compare(family, pixels, changes, device, small, prediction)
            tell(result="peak", plan=case, **found)
        except torch.cuda.OutOfMemoryError:
            tell(result="peak", plan=case, error="out of memory")
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()


def predicted(name: str, pixels: int, changes: dict[str, Any], small: bool) -> Trace:
    """Trace a plan's step, which needs no GPU and, for SDXL, half a minute of a processor."""
    torch.set_num_threads(1)
    plan, family = plan_of(small, **changes), find_family(name)
    config: Any = family.config(family.denoiser)
    if small:
        pixels //= 8
        config = dict(fakes_checkpoint.build_networks(name)[family.denoiser].config)
    side = pixels // family.latents.space({}).stride
    dtype = weight_types(plan)["denoiser_dtype"] or torch.float32
    return trace_step(config, plan, family=family, side=side, dtype=dtype)


def compare(
    name: str,
    pixels: int,
    changes: dict[str, Any],
    device: str,
    small: bool,
    prediction: Future[Trace],
) -> dict[str, Any]:
    plan, pixels = plan_of(small, **changes), pixels // 8 if small else pixels
    dtype = weight_types(plan)["denoiser_dtype"] or torch.float32
    model = denoiser_model(name, pixels, device, dtype, small)
    data = random_data(model, pixels // model.latent_space.stride, samples=32)
    found: dict[str, Any] = {}
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        method, plan = read_plan(plan)
        with adapted(model, plan) as denoiser:
            denoiser.training(plan.gradient_checkpointing)
            setup = set_up(denoiser, plan, data)
            method.step(setup, 1)
            method.step(setup, 2)
        allocated = torch.cuda.max_memory_allocated()
        found["reserved MiB"] = round(torch.cuda.max_memory_reserved() / MIB)
    else:
        traced = measure_step(model, plan, data, LiveMemory("cpu"))
        allocated = traced.weights + traced.state + traced.activations
    trace = prediction.result()
    margin = CONTEXT + FRAGMENTS * (trace.peak - trace.weights)
    return found | {
        "measured MiB": round(allocated / MIB), "predicted MiB": round(trace.peak / MIB),
        "predicted with margin MiB": round((trace.peak + margin) / MIB),
        "predicted / measured": round(trace.peak / allocated, 3),
    }  # fmt: skip
