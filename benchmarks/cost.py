"""Cost of one outer step, as a multiple of the bare passes it needs; its shares; its memory.

A bare pass is forward and backward of the same network with the same LoRA on the same batch,
written as plainly as it goes, with nothing around it. The passes a step needs are counted: one
for L_harm(θ), one and a frozen forward for L_retain, the inner steps, one for L_harm(θ*), and two
per finite-difference product. Steps and bare passes alternate in one process, in CPU seconds,
medians; random weights and data.

    python benchmarks/cost.py [--size tiny|small] [--json FILE]

Sizes: `tiny` 3.3 M weights at 8 x 8 latents (the demo's network), `small` 37 M at 32 x 32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from process_memory import forget_peak, resident

from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.data.batches import EncodedData
from resalign.backend.data.encoded_set import Bucket, EncodedSet
from resalign.backend.families import find_family
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.families.base.process import discrete_process, scaled_linear_alphas_cumprod
from resalign.backend.hardening import recipe
from resalign.backend.hardening.setup import set_up
from resalign.backend.hardening.training import train_step
from resalign.backend.model.model import Model
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.regulator import RegulatorConfig
from resalign.backend.plan.solver import SolverConfig

SIZES = {  # widths, cross-attention width, heads, groups, latent side
    "tiny": ((32, 48, 72, 72), 32, 4, 8, 8),
    "small": ((64, 128, 256, 256), 768, 8, 32, 32),
}
FORGET, RETAIN, INNER, STEPS, PRODUCTS = 4, 4, 4, 10, 4


def build(size: str) -> tuple[Model, EncodedData]:
    from diffusers import UNet2DConditionModel

    widths, context, heads, groups, side = SIZES[size]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=widths, cross_attention_dim=context, attention_head_dim=heads,
        norm_num_groups=groups, sample_size=side,
    ).eval()  # fmt: skip
    schedule = discrete_process(scaled_linear_alphas_cumprod())
    model = Model(find_family("sd1"), unet, (), (), None, schedule, 8 * side)  # type: ignore[arg-type]
    empty = Conditioning({"context": torch.randn(1, 77, context)})
    bucket = Bucket(
        torch.randn(32, 4, side, side), torch.zeros(32, dtype=torch.long), torch.ones(32).double()
    )
    data = EncodedSet((bucket,), ("",), empty, empty)
    return model, EncodedData({"c": data}, data, {"c": empty}, empty, {"retain": data})


def plan(method: str) -> HardeningPlan:
    user = FineTuneConfig(name="u", learning_rate=1e-4, steps=STEPS, batch=INNER)
    return HardeningPlan(
        concepts=(Concept("c", prompts=("c",)),), fine_tunes=(user,), outer_steps=1000,
        warm_up_steps=0, forget_batch=FORGET, retain_batch=RETAIN,
        regulator=RegulatorConfig(enabled=False),
        solver=SolverConfig(method=method, iterations=PRODUCTS, gamma=1e-3, tolerance=0),
    )  # fmt: skip


def bare(denoiser: AdaptedDenoiser, batch: int, side: int, context: int) -> Callable[[], None]:
    """Run one plain forward and backward pass of the network."""
    latents, noise = torch.randn(2, batch, 4, side, side).unbind()
    conditioning, times = torch.randn(batch, 77, context), torch.randint(0, 1000, (batch,))
    unet, leaves = denoiser.model.denoiser, list(denoiser.theta.values())

    def run() -> None:
        loss = (unet(latents, times, conditioning, return_dict=False)[0] - noise).square().mean()
        torch.autograd.grad(loss, leaves)

    return run


def forward(denoiser: AdaptedDenoiser, batch: int, side: int, context: int) -> Callable[[], None]:
    latents, times = torch.randn(batch, 4, side, side), torch.randint(0, 1000, (batch,))
    conditioning = torch.randn(batch, 77, context)

    def run() -> None:
        with denoiser.frozen():
            denoiser.model.denoiser(latents, times, conditioning, return_dict=False)

    return run


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


class Shares:
    """CPU seconds inside the parts of a step, by wrapping the functions it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._wrap(recipe, "inner_loop", "inner loop")
        self._wrap(recipe, "hypergradient", "harm at θ* and solve")

    def _wrap(self, module: object, name: str, label: str) -> None:
        original = getattr(module, name)

        def timed(*args: object, **kwargs: object) -> object:
            started = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[label] += time.process_time() - started

        setattr(module, name, timed)


def measure(size: str, repeats: int) -> dict[str, object]:
    side, context = SIZES[size][4], SIZES[size][1]
    model, data = build(size)
    shares = Shares()
    result: dict[str, object] = {
        "size": size,
        "weights": sum(p.numel() for p in model.denoiser.parameters()),
    }
    for method in ("first_order", "richardson"):
        with AdaptedDenoiser(model, AdapterConfig()) as denoiser:
            setup = set_up(denoiser, plan(method), data)
            passes = {b: bare(denoiser, b, side, context) for b in {FORGET, RETAIN, INNER}}
            frozen = forward(denoiser, RETAIN, side, context)
            for warm in (*passes.values(), frozen, partial(train_step, setup, 1)):
                warm()
            shares.seconds.clear()
            steps, bares, forwards = [], defaultdict(list), []
            for number in range(repeats):
                steps.append(cpu_seconds(partial(train_step, setup, number + 1)))
                for batch, work in passes.items():
                    bares[batch] += [cpu_seconds(work) for _ in range(3)]
                forwards += [cpu_seconds(frozen) for _ in range(3)]
            cost = {batch: statistics.median(times) for batch, times in bares.items()}
            products = 2 * PRODUCTS if method == "richardson" else 0
            needed = (
                2 * cost[FORGET] + cost[RETAIN] + statistics.median(forwards)
                + (STEPS + products) * cost[INNER]
            )  # fmt: skip
            step = statistics.median(steps)
            total = sum(steps)
            result[method] = {
                "step_seconds": step, "needed_seconds": needed, "ratio": step / needed,
                "in_bare_passes": step / cost[INNER],
                "spread": [min(steps), max(steps)],
                "shares": {k: round(v / total, 3) for k, v in shares.seconds.items()},
            }  # fmt: skip
    return result


def peak_memory(size: str, method: str) -> dict[str, float]:
    """MiB above the process with the weights loaded, after two steps; run in its own process."""
    model, data = build(size)
    with AdaptedDenoiser(model, AdapterConfig()) as denoiser:
        before = resident("VmRSS")
        if method == "bare":
            work = bare(denoiser, FORGET, SIZES[size][4], SIZES[size][1])
        else:
            work = partial(train_step, set_up(denoiser, plan(method), data), 1)
        forget_peak()
        work()
        work()
        after = resident("VmHWM")
    return {"above_weights_mib": round(after - before, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        print(json.dumps(peak_memory(arguments.size, arguments.memory)))
        return
    result = measure(arguments.size, arguments.repeats)
    memory = {}
    for method in ("bare", "first_order", "richardson"):
        command = [sys.executable, __file__, "--size", arguments.size, "--memory", method]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        memory[method] = json.loads(done.stdout.splitlines()[-1])["above_weights_mib"]
    result["memory_above_weights_mib"] = memory
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
