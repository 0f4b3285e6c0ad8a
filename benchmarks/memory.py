"""Peak memory of one outer step, against the published code's, and what the planner says of GPUs.

    python benchmarks/memory.py [--size small|full] [--inner N] [--json FILE]
    python benchmarks/memory.py --plans [--json FILE]

Measured: the resident set of a process of its own (VmHWM, Linux), above what it was with imports
and one network, after two outer steps of J = 3 users, N inner steps each (15: 45 in all, as
published; more add no memory), harmful batch 1, retain batch 4; and beside it the bytes of live
tensors that the planner's tracker counts in the same step. What lies between the two are kernels'
workspaces, code, and blocks that malloc keeps: MALLOC_MMAP_THRESHOLD_=65536 in the environment, the
second figure, makes glibc give freed tensors back.

Sizes: `small` SD1.5's topology at 64 to 256 channels, 37.5 M weights; `full` SD1.5's, 860 M
weights, 3.3 GB. Both at 32 x 32 latents, random weights and data, float32, one thread. The
published code's peaks, 1,869 and 7,770 MiB above one network, were measured on the same kind of
machine by the same rule, its second network (the teacher) included; here they are constants.

Planned (`--plans`): the balanced preset on each family and size, and the cheapest settings for GPUs
of 8, 12, 16 and 24 GiB; nothing of that ran on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from process_memory import forget_peak, resident

from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.families import find_family
from resalign.backend.families.base.process import discrete_process, scaled_linear_alphas_cumprod
from resalign.backend.hardening.setup import set_up
from resalign.backend.hardening.training import train_step
from resalign.backend.memory.plan import plan_memory
from resalign.backend.memory.trace import measure_step, random_data
from resalign.backend.memory.tracker import LiveMemory
from resalign.backend.model.model import Model
from resalign.backend.numerics.byte_sizes import GIB
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.regulator import RegulatorConfig
from resalign.backend.plan.solver import SolverConfig

PUBLISHED = {"small": 1869, "full": 7770}  # MiB above one network
GOALS = {"small": 180, "full": 700}
SIDE, MIB = 32, 2**20
SETTINGS: dict[str, dict[str, Any]] = {
    "whole batches": {},
    "micro-batches of 1": {"micro_batch": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "both": {"micro_batch": 1, "gradient_checkpointing": True},
    "both, Richardson with 5 products": {
        "micro_batch": 1, "gradient_checkpointing": True,
        "solver": SolverConfig(method="richardson", iterations=5, gamma=1e-3, tolerance=0),
    },
}  # fmt: skip
CASES = [("sd1", 512), ("sd1", 768), ("sd2", 768), ("sdxl", 768), ("sdxl", 1024)]
BUDGETS = (8, 12, 16, 24)


def build(size: str) -> Model:
    from diffusers import UNet2DConditionModel

    config = {k: v for k, v in find_family("sd1").config("unet").items() if not k.startswith("_")}
    if size == "small":
        config["block_out_channels"] = (64, 128, 256, 256)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(config)
    unet.to_empty(device="cpu").eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for tensor in unet.parameters():
        tensor.normal_(0, 0.02, generator=random)
    schedule = discrete_process(scaled_linear_alphas_cumprod())
    return Model(find_family("sd1"), unet, (), (), None, schedule, 8 * SIDE)  # type: ignore[arg-type]


def plan_of(setting: str, inner: int) -> HardeningPlan:
    users = tuple(
        FineTuneConfig(name=f"user {n}", learning_rate=1e-5, steps=inner, batch=1) for n in range(3)
    )
    plan = HardeningPlan(
        concepts=(Concept("concept", prompts=("concept",)),), fine_tunes=users,
        configurations_per_step=3, outer_steps=10, warm_up_steps=0, forget_batch=1, retain_batch=4,
        regulator=RegulatorConfig(enabled=False),
    )  # fmt: skip
    return replace(plan, **SETTINGS[setting])


def measure(size: str, setting: str, inner: int) -> dict[str, float]:
    """Measure in a process of its own."""
    torch.set_num_threads(1)
    model, plan = build(size), plan_of(setting, inner)
    before = resident("VmRSS")
    forget_peak()
    with AdaptedDenoiser(model, AdapterConfig()) as denoiser:
        denoiser.training(plan.gradient_checkpointing)
        setup = set_up(denoiser, plan, random_data(model, SIDE))
        train_step(setup, 1)
        train_step(setup, 2)
    above = resident("VmHWM") - before
    traced = measure_step(model, plan, random_data(model, SIDE), LiveMemory("cpu"))
    return {"resident": round(above), "tensors": round((traced.peak - traced.weights) / MIB)}


def measured(size: str, inner: int, settings: list[str]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    print(f"{size}: MiB above one network; published {PUBLISHED[size]}, goal {GOALS[size]}")
    for setting in settings:
        row: dict[str, Any] = {}
        for malloc, extra in (("", {}), ("given back", {"MALLOC_MMAP_THRESHOLD_": "65536"})):
            command = [sys.executable, __file__, "--size", size, "--inner", str(inner)]
            done = subprocess.run(
                [*command, "--one", setting], env=os.environ | extra, capture_output=True,
                text=True, check=True,
            )  # fmt: skip
            row[malloc or "as it is"] = json.loads(done.stdout.splitlines()[-1])
        kept, tight = row["as it is"]["resident"], row["given back"]["resident"]
        row["published over ours"] = round(PUBLISHED[size] / kept, 1)
        row["goal met"] = kept <= GOALS[size]
        rows[setting] = row
        print(
            f"  {setting:34} resident {kept:5} ({PUBLISHED[size] / kept:4.1f} x less), malloc "
            f"giving back {tight:5} ({PUBLISHED[size] / tight:4.1f} x), tensors "
            f"{row['as it is']['tensors']:5}", flush=True,
        )  # fmt: skip
    return rows


def planned() -> list[dict[str, Any]]:
    """The planner's table; `settings` is None where nothing fits."""
    plan = preset_plan("balanced", (Concept("concept", prompts=("concept",)),))
    rows = []
    for family, pixels in CASES:
        found = plan_memory(plan, family, resolution=pixels)
        row: dict[str, Any] = {"family": family, "pixels": pixels, "default": found.total / GIB}
        for budget in BUDGETS:
            found = plan_memory(plan, family, resolution=pixels, budget=budget)
            row[str(budget)] = {
                "fits": found.fits, "gib": round(found.total / GIB, 2),
                "settings": dict(found.changes),
            }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=PUBLISHED, default="small")
    parser.add_argument("--inner", type=int, default=15, help="inner steps of each of 3 users")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.size, args.one, args.inner)))
        return
    result = planned() if args.plans else measured(args.size, args.inner, args.settings)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
