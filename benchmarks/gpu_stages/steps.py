"""Stage `steps`: outer steps of SD 1.5 at 512 pixels, by precision and kernels.

A step is one of ResAlign's: harm and retention at θ, J = 2 users of five inner steps each, and the
harm after each. The bare step beside it is what a trainer does: diffusers' U-Net with PEFT's LoRA
of the same rank on the same modules, autocast, AdamW, the same batch; both on the same card in the
same process. Their ratio compares images per second of the inner loop alone.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_stages.models import denoiser_model, seconds_of, synchronise
from resalign.backend.hardening import feed as feeds
from resalign.backend.hardening import recipe
from resalign.backend.hardening.setup import adapted, kernels_of, set_up
from resalign.backend.hardening.training import train_step
from resalign.backend.memory.trace import random_data
from resalign.backend.memory.weights import weight_types
from resalign.backend.model.kernels import applied
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.regulator import RegulatorConfig

INNER, BATCH, REPEATS = 5, 4, 3
SETTINGS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "bf16, users_at_once 2": {"precision": "bf16", "users_at_once": 2},
    "fp32, TF32": {"precision": "fp32"},
    "fp16": {"precision": "fp16"},
    "bf16, checkpointing": {"precision": "bf16", "gradient_checkpointing": True},
    "bf16, torch.compile": {"precision": "bf16"},
}
GPU_ONLY = ("fp16", "bf16, torch.compile", "bf16, checkpointing")  # or too slow on a CPU


def run(device: str, small: bool, out: Path, tell: Any) -> None:
    for name, changes in SETTINGS.items():
        if device == "cpu" and name in GPU_ONLY:
            tell(result="step", setting=name, error="only on a GPU")
            continue
        try:
            tell(result="step", setting=name, **measure(name, plan_of(**changes), device, small))
        except Exception as error:  # the next setting may do
            tell(result="step", setting=name, error=f"{type(error).__name__}: {error}"[:300])
    tell(result="bare step", **bare(device, small))


def plan_of(**changes: Any) -> HardeningPlan:
    users = tuple(
        FineTuneConfig(name=f"user {n}", learning_rate=1e-4, steps=INNER, batch=BATCH)
        for n in range(2)
    )
    plan = HardeningPlan(
        concepts=(Concept("concept", prompts=("concept",)),), fine_tunes=users,
        configurations_per_step=2, outer_steps=100, warm_up_steps=0, forget_batch=BATCH,
        retain_batch=BATCH, regulator=RegulatorConfig(enabled=False),
    )  # fmt: skip
    return replace(plan, **changes)


def measure(name: str, plan: HardeningPlan, device: str, small: bool) -> dict[str, Any]:
    pixels = 64 if small else 512
    dtype = weight_types(plan)["denoiser_dtype"] or torch.float32
    model = denoiser_model("sd1", pixels, device, dtype, small)
    data = random_data(model, pixels // 8, samples=32)
    with adapted(model, plan) as denoiser, tf32(plan.precision == "fp32"):
        denoiser.training(plan.gradient_checkpointing)
        setup = set_up(denoiser, plan, data)
        if "compile" in name:
            model.denoiser.compile()
        with applied(model.denoiser, kernels := kernels_of(setup)):
            first = seconds_of(partial(train_step, setup, 1), device)
            steps = range(2, 3 if small else 2 + REPEATS)
            times = [seconds_of(partial(train_step, setup, n), device) for n in steps]
            found: dict[str, Any] = {
                "seconds": round(statistics.median(times), 3), "first": round(first, 2),
                "inner images/s": round(images(setup, device), 2), "kernels": kernels.name,
                "shares": shares(setup, device),
            }  # fmt: skip
            if device.startswith("cuda"):
                found["GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
                found["idle"] = idle_share(setup)
                found["synchronisations"] = synchronisations(setup)
                torch.cuda.reset_peak_memory_stats()
    return found


@contextmanager
def tf32(on: bool) -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def images(setup: Any, device: str) -> float:
    """Return images per second of one user's inner loop."""
    from resalign.backend.bilevel.inner_loop import inner_loop
    from resalign.backend.bilevel.simulate import trained

    user = setup.plan.fine_tunes[0]
    with trained(setup.denoiser, setup.plan.simulate, user, 0) as phi:
        work = partial(
            inner_loop, phi, lambda n: setup.feed.fine_tuning(1, 0, n, user), user, INNER,
            scale=setup.denoiser.loss_scale,
        )  # fmt: skip
        work()
        return INNER * BATCH / min(seconds_of(work, device) for _ in range(REPEATS))


def shares(setup: Any, device: str) -> str:
    """Return the shares of a step's parts, measured with a synchronisation around each."""
    spent: dict[str, float] = defaultdict(float)
    with (
        timing(recipe, "inner_loop", "inner loop", spent, device),
        timing(recipe, "hypergradient", "after and solve", spent, device),
        timing(feeds, "draw", "data", spent, device),
        timing(recipe, "gradient", "outer losses", spent, device),
    ):
        total = seconds_of(partial(train_step, setup, 50), device)
    parts = {name: value / total for name, value in spent.items()}
    return ", ".join(f"{name} {share:.0%}" for name, share in parts.items())


@contextmanager
def timing(module: Any, name: str, label: str, spent: dict[str, float], device: str) -> Any:
    original = getattr(module, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        synchronise(device)
        began = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            synchronise(device)
            spent[label] += time.perf_counter() - began

    setattr(module, name, timed)
    try:
        yield
    finally:
        setattr(module, name, original)


def idle_share(setup: Any) -> float:
    """Return the share of a step's wall time in which no kernel ran, from the profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        wall = seconds_of(partial(train_step, setup, 60), "cuda")
    busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    return round(max(0.0, 1 - busy / wall), 3)


def synchronisations(setup: Any) -> dict[str, int]:
    """Return the places in a step at which the host waited for the GPU, with counts."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_step(setup, 70)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchroniz" in str(w.message)]
    return dict(Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits).most_common(8))


def bare(device: str, small: bool) -> dict[str, Any]:
    """Return images per second of a plain LoRA step of the same size."""
    from peft import LoraConfig
    from torch.nn import functional

    pixels = 64 if small else 512
    model = denoiser_model("sd1", pixels, device, torch.bfloat16, small)
    unet, side = model.denoiser, pixels // 8
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    leaves = [p for p in unet.parameters() if p.requires_grad]
    for leaf in leaves:
        leaf.data = leaf.data.float()
    options = {"fused": True} if device.startswith("cuda") else {}
    optimiser = torch.optim.AdamW(leaves, lr=1e-4, **options)
    width = unet.config.cross_attention_dim
    latents, noise = torch.randn(2, BATCH, 4, side, side, device=device).unbind()
    texts = torch.randn(BATCH, 77, width, device=device)
    times = torch.randint(0, 1000, (BATCH,), device=device)

    def step() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            found = unet(latents, times, texts, return_dict=False)[0]
        functional.mse_loss(found.float(), noise).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def loop() -> None:
        for _ in range(INNER):
            step()

    loop()
    fastest = min(seconds_of(loop, device) for _ in range(REPEATS))
    return {"setting": "diffusers and PEFT, bf16", "images/s": round(INNER * BATCH / fastest, 2)}
