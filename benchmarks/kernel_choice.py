"""A gradient with other kernels: memory formats, attention, bf16, torch.compile; ratios in one run.

    python benchmarks/kernel_choice.py [--size small] [--device cpu] [--batches 1 4] [--repeats 7]
        [--compile] [--json FILE]

One forward and backward pass of the denoiser with a LoRA of rank 4 on its attention, random weights
and data, on one thread. All variants take turns within each round; a ratio is to `sdpa, contiguous`
of the same round, median (least to most). --compile adds torch.compile of the network (its first
pass takes minutes on a CPU). On CUDA xformers is tried too, where it is installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from published import SIZES, unet_settings

from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.families import find_family
from resalign.backend.model.kernels import Kernels, applied, candidates
from resalign.backend.model.model import Model
from resalign.backend.model.process import discrete_process, scaled_linear_alphas_cumprod
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.kernels import KernelConfig

FIRST = "sdpa, contiguous"


def gradient(size: str, device: torch.device, stack: ExitStack, variant: str) -> Callable:
    """A pass of a network of its own, by batch: forward and backward to the adapter."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**unet_settings(size)).eval().to(device)
    schedule = discrete_process(scaled_linear_alphas_cumprod())
    model = Model(find_family("sd1"), unet, (), (), None, schedule, 512)  # type: ignore[arg-type]
    denoiser = stack.enter_context(AdaptedDenoiser(model, AdapterConfig()))
    kernels, *more = variant.split(" + ")
    attention, memory_format = kernels.split(", ")
    chosen = Kernels(attention, memory_format, "", device.type)
    stack.enter_context(applied(unet, chosen))
    if "compile" in more:
        unet.compile(dynamic=False)
    leaves, context = list(denoiser.theta.values()), SIZES[size][3]
    side = SIZES[size][5]

    def work(batch: int) -> None:
        random = torch.Generator(device).manual_seed(1)
        latents = torch.randn(batch, 4, side, side, generator=random, device=device)
        texts = torch.randn(batch, 77, context, generator=random, device=device)
        times = torch.randint(0, 1000, (batch,), generator=random, device=device)
        mixed = torch.autocast(device.type, torch.bfloat16) if "bf16" in more else nullcontext()
        with mixed:
            predicted = unet(latents, times, texts, return_dict=False)[0]
        torch.autograd.grad(predicted.float().square().mean(), leaves)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(given.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    found = candidates(KernelConfig(), device, twice=False, own=True)
    names = dict.fromkeys([*(one.name for one in found), "sdpa, channels_last"])
    variants = [*names, *(f"{name} + bf16" for name in names)]
    if given.compile:
        variants += [f"{name} + compile" for name in names]
    rows = {}
    with ExitStack() as stack:
        passes = {name: gradient(given.size, device, stack, name) for name in variants}
        for batch in given.batches:
            work = {name: partial(one, batch) for name, one in passes.items()}
            first = {name: _seconds(one, clock) for name, one in work.items()}
            times: dict[str, list[float]] = {name: [] for name in work}
            for _ in range(given.repeats):
                for name, one in work.items():
                    times[name].append(_seconds(one, clock))
            for name, taken in times.items():
                pairs = zip(taken, times[FIRST], strict=True)
                ratios = [one / other for one, other in pairs]
                row = {
                    "first": first[name], "seconds": statistics.median(taken),
                    "ratio": [statistics.median(ratios), min(ratios), max(ratios)],
                }  # fmt: skip
                rows[f"{name}, batch {batch}"] = row
                middle, low, high = row["ratio"]
                print(
                    f"{given.size} batch {batch}  {name:32} first {row['first']:7.2f} s  "
                    f"{row['seconds']:7.3f} s  ratio {middle:.2f} ({low:.2f} to {high:.2f})",
                    flush=True,
                )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    work()
    return clock() - began


if __name__ == "__main__":
    main()
