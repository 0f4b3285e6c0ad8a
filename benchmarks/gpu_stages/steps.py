"""Stage `steps`: outer steps of SD 1.5 at 512 pixels, by precision and kernels.

A step is one of ResAlign's: harm and retention at θ, J = 2 users of five inner steps each, and the
harm after each. The bare step beside it is what a trainer does: diffusers' U-Net with PEFT's LoRA
of the same rank on the same modules, autocast, AdamW, the same batch; both on the same card in the
same process. Their ratio compares images per second of the inner loop alone. A step of `distil`,
with its batch of 16 and all weights, and a ResAlign step of FLUX.2 klein are timed beside them.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_stages.models import denoiser_model, seconds_of
from gpu_stages.shares import profiled, shares, waits
from resalign.backend.hardening.methods import read_plan
from resalign.backend.hardening.setup import adapted, kernels_of, set_up
from resalign.backend.memory.trace import random_data
from resalign.backend.memory.weights import weight_types
from resalign.backend.model.kernels import applied
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.regulator import RegulatorConfig
from resalign.backend.plan.solver import SolverConfig

INNER, BATCH, REPEATS = 5, 4, 3
LOOKED_AT = ("bf16", "fp32, no TF32, Richardson")  # profiled; it takes longer than the steps do
SOLVE = SolverConfig(method="richardson", iterations=5)
SETTINGS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "bf16, users_at_once 2": {"precision": "bf16", "users_at_once": 2},
    "fp32, TF32": {"precision": "fp32"},
    "fp32, no TF32, Richardson": {"precision": "fp32", "solver": SOLVE},
    "fp16": {"precision": "fp16"},
    "bf16, checkpointing": {"precision": "bf16", "gradient_checkpointing": True},
    "bf16, torch.compile": {"precision": "bf16"},
    "distil, bf16": {"precision": "bf16", "method": "distil"},
    "FLUX.2 klein, bf16": {"precision": "bf16", "micro_batch": 1},
}


def run(device: str, small: bool, out: Path, tell: Any) -> None:
    tell(result="bare step", **bare(device, small))  # and once more at the end: clocks drift
    for name, changes in SETTINGS.items():
        if small and "klein" in name:  # its width is fixed by what reads it
            continue
        try:
            found = measure(name, plan_of(small, **changes), device, small)
            tell(result="step", setting=name, **found)
        except Exception as error:  # the next setting may do
            tell(result="step", setting=name, error=f"{type(error).__name__}: {error}"[:300])
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    tell(result="bare step", **bare(device, small))
    if device.startswith("cuda"):
        tell(result="bare step", **bare(device, small, graph=True))


def plan_of(small: bool = False, **changes: Any) -> HardeningPlan:
    inner, batch = (1, 2) if small else (INNER, BATCH)
    users = tuple(
        FineTuneConfig(name=f"user {n}", learning_rate=1e-4, steps=inner, batch=batch)
        for n in range(2)
    )
    plan = HardeningPlan(
        concepts=(Concept("concept", prompts=("concept",)),), fine_tunes=users,
        configurations_per_step=2, outer_steps=100, warm_up_steps=0, forget_batch=batch,
        retain_batch=batch, regulator=RegulatorConfig(enabled=False), users_at_once=1,
        micro_batch=0,
    )  # fmt: skip
    return replace(plan, **changes)


def measure(name: str, plan: HardeningPlan, device: str, small: bool) -> dict[str, Any]:
    family, pixels = "flux2_klein" if "klein" in name else "sd1", 64 if small else 512
    dtype = weight_types(plan)["denoiser_dtype"] or torch.float32
    model = denoiser_model(family, pixels, device, dtype, small)
    data = random_data(model, pixels // model.latent_space.stride, samples=32)
    method, plan = read_plan(plan)
    with adapted(model, plan) as denoiser:
        denoiser.training(plan.gradient_checkpointing)
        setup = set_up(denoiser, plan, data)
        if "compile" in name:  # on a CPU the code is traced, and not compiled, which takes minutes
            model.denoiser.compile(**({"backend": "eager"} if device == "cpu" else {}))
        with applied(model.denoiser, kernels := kernels_of(setup)):
            first = seconds_of(partial(method.step, setup, 1), device)
            steps = range(2, 3 if small else 2 + REPEATS)
            times = [seconds_of(partial(method.step, setup, n), device) for n in steps]
            found: dict[str, Any] = {
                "seconds": round(statistics.median(times), 3), "first": round(first, 2),
                "kernels": kernels.name, "TF32": bool(kernels.tf32),
            }  # fmt: skip
            if method.facts.simulates_users:
                found["inner images/s"] = round(images(setup, device, small), 2)
            if name in LOOKED_AT[1 if small else 0 :]:
                found |= shares(setup, device)
                found |= {**profiled(setup, device), "waits": waits(setup, device)}
            if device.startswith("cuda"):
                found["GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found


def images(setup: Any, device: str, small: bool) -> float:
    """Return images per second of one user's inner loop."""
    from resalign.backend.bilevel.inner_loop import inner_loop
    from resalign.backend.bilevel.simulate import trained

    user = setup.plan.fine_tunes[0]
    with trained(setup.denoiser, setup.plan.simulate, user, 0) as phi:
        work = partial(
            inner_loop, phi, lambda n: setup.feed.fine_tuning(1, 0, n, user), user, user.steps,
            scale=setup.denoiser.loss_scale,
        )  # fmt: skip
        work()
        repeats = 1 if small else REPEATS
        return user.steps * user.batch / min(seconds_of(work, device) for _ in range(repeats))


def bare(device: str, small: bool, *, graph: bool = False) -> dict[str, Any]:
    """Return images per second of a plain LoRA step of the same size.

    graph: replay the step as one CUDA graph, which shows how long the card itself takes.
    """
    from peft import LoraConfig
    from torch.nn import functional

    inner, batch, repeats = (1, 2, 1) if small else (INNER, BATCH, REPEATS)
    pixels = 64 if small else 512
    model = denoiser_model("sd1", pixels, device, torch.bfloat16, small)
    unet, side = model.denoiser, pixels // 8
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    leaves = [p for p in unet.parameters() if p.requires_grad]
    for leaf in leaves:
        leaf.data = leaf.data.float()
    options = {"fused": True, "capturable": graph} if device.startswith("cuda") else {}
    optimiser = torch.optim.AdamW(leaves, lr=1e-4, **options)
    width = unet.config.cross_attention_dim
    latents, noise = torch.randn(2, batch, 4, side, side, device=device).unbind()
    texts = torch.randn(batch, 77, width, device=device)
    times = torch.randint(0, 1000, (batch,), device=device)

    def step() -> None:
        kind = torch.device(device).type
        with torch.autocast(kind, torch.bfloat16, cache_enabled=not graph):
            found = unet(latents, times, texts, return_dict=False)[0]
        functional.mse_loss(found.float(), noise).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=not graph)

    def loop() -> None:
        for _ in range(inner):
            step()

    loop()
    if graph:
        work = as_graph(step)
        fastest = min(seconds_of(work, device) for _ in range(2 * repeats)) * inner
    else:
        fastest = min(seconds_of(loop, device) for _ in range(repeats))
    name = "diffusers and PEFT, bf16" + (", replayed as a CUDA graph" if graph else "")
    return {"setting": name, "images/s": round(inner * batch / fastest, 2)}


def as_graph(step: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
