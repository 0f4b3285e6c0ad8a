"""Stage `memory`: the peak of an outer step, measured and predicted.

On CUDA the measured peak is `torch.cuda.max_memory_allocated` of two outer steps in a model of
random weights; on a CPU it is the bytes of live tensors that the planner's tracker counts, which
rehearses the code and says nothing of a GPU. The prediction is the planner's for an outer step: it
should be near what is allocated and never below it, and with its margin above what is reserved.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from gpu_stages.models import denoiser_model, fakes_checkpoint
from gpu_stages.steps import plan_of
from resalign.backend.families import find_family
from resalign.backend.hardening.methods import read_plan
from resalign.backend.hardening.setup import adapted, set_up
from resalign.backend.memory.plan import CONTEXT, FRAGMENTS
from resalign.backend.memory.trace import measure_step, random_data, trace_step
from resalign.backend.memory.tracker import LiveMemory
from resalign.backend.memory.weights import weight_types

MIB = 2**20
CASES: list[tuple[str, int, dict[str, Any]]] = [
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
    for family, pixels, changes in (CASES[0], CASES[3], CASES[12]) if small else CASES:
        case = ", ".join([f"{family} at {pixels}", *(f"{k} {v}" for k, v in changes.items())])
        try:
            tell(result="peak", plan=case, **compare(family, pixels, changes, device, small))
        except torch.cuda.OutOfMemoryError:
            tell(result="peak", plan=case, error="out of memory")
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()


def compare(
    name: str, pixels: int, changes: dict[str, Any], device: str, small: bool
) -> dict[str, Any]:
    plan, family = plan_of(small, **changes), find_family(name)
    config: Any = family.config(family.denoiser)
    if small:
        pixels //= 8
        config = dict(fakes_checkpoint.build_networks(name)[family.denoiser].config)
    dtype = weight_types(plan)["denoiser_dtype"] or torch.float32
    model = denoiser_model(name, pixels, device, dtype, small)
    side = pixels // model.latent_space.stride
    data = random_data(model, side, samples=32)
    predicted = trace_step(config, plan, family=family, side=side, dtype=dtype)
    step, margin = predicted.peak, CONTEXT + FRAGMENTS * (predicted.peak - predicted.weights)
    found: dict[str, Any] = {"predicted MiB": round(step / MIB)}
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
        found["predicted with margin MiB"] = round((step + margin) / MIB)
    else:
        traced = measure_step(model, plan, data, LiveMemory("cpu"))
        allocated = traced.weights + traced.state + traced.activations
    found["measured MiB"] = round(allocated / MIB)
    found["predicted / measured"] = round(step / allocated, 3)
    return found
