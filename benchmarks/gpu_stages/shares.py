"""Shares of an outer step's time, and of the host's waits for the device."""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_stages.models import seconds_of, synchronise
from resalign.backend.bilevel import hypergradient as implicit
from resalign.backend.hardening import feed, recipe, users
from resalign.backend.hardening.training import train_step

PARTS = (  # where a name is looked up, the name, and its part of the step
    (recipe, "inner_loop", "inner loop"), (users, "inner_loops", "inner loop"),
    (recipe, "hypergradient", "losses at θ*"), (users, "hypergradient", "losses at θ*"),
    (implicit, "_implicit", "solve"), (recipe, "gradient", "losses at θ"), (feed, "draw", "data"),
)  # fmt: skip
REST = "Python and the rest"
PACKAGE = Path(recipe.__file__).resolve().parents[2]


class Clock:
    """Times parts of a step; what a part inside another takes counts for the inner one alone."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.spent: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []  # seconds of the parts inside of those that are open

    @contextmanager
    def part(self, module: Any, name: str, label: str) -> Any:
        original = getattr(module, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronise(self.device)
            began = time.perf_counter()
            self._inner.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                synchronise(self.device)
                seconds, inner = time.perf_counter() - began, self._inner.pop()
                self.spent[label] += seconds - inner
                if self._inner:
                    self._inner[-1] += seconds

        setattr(module, name, timed)
        try:
            yield
        finally:
            setattr(module, name, original)


def shares(setup: Any, device: str) -> dict[str, str]:
    """Return the share of each part of a step, measured with a synchronisation around each."""
    clock = Clock(device)
    with ExitStack() as stack:
        for part in PARTS:
            stack.enter_context(clock.part(*part))
        total = seconds_of(partial(train_step, setup, 50), device)
    clock.spent[REST] = total - sum(clock.spent.values())
    names = dict.fromkeys([*(label for *_, label in PARTS), REST])
    return {name: f"{clock.spent[name] / total:.0%}" for name in names}


def profiled(setup: Any, device: str) -> dict[str, float]:
    """Return the share of a step in Python between operations; on CUDA, also the idle share."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU]
    if device.startswith("cuda"):
        kinds.append(ProfilerActivity.CUDA)
    with profile(activities=kinds) as profiler:
        wall = seconds_of(partial(train_step, setup, 60), device)
    events = profiler.key_averages()
    found = {"Python": round(1 - sum(e.self_cpu_time_total for e in events) / 1e6 / wall, 3)}
    if device.startswith("cuda"):
        busy = sum(event.self_device_time_total for event in events) / 1e6
        found["idle"] = round(max(0.0, 1 - busy / wall), 3)
    return found


def waits(setup: Any, device: str) -> dict[str, int]:
    """Return the lines of a step at which the host waits for the device, with counts.

    On CUDA PyTorch reports them; on a CPU, where nobody waits, the reads of single values stand in
    for them: each would be a wait.
    """
    if not device.startswith("cuda"):
        with _Reads() as reads:
            train_step(setup, 70)
        return dict(reads.lines.most_common(8))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_step(setup, 70)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchroniz" in str(w.message)]
    return dict(Counter(f"{Path(w.filename).name}:{w.lineno}" for w in found).most_common(8))


class _Reads(TorchDispatchMode):
    """Counts reads of a tensor's value, by the line of the package that asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.lines[_line()] += 1
        return func(*args, **(kwargs or {}))


def _line() -> str:
    frame: Any = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.resolve().parents and "gpu_stages" not in path.parts:
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
