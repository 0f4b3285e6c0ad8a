"""The lines that a run says before its first step: device, arithmetic, memory and time.

The time of a pass is not known before one was measured, so that the first message gives the number
of passes, and the time follows after the first outer step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..numerics.byte_sizes import format_bytes
from ..plan.auto import micro_batch_of, users_at_once_of
from ..plan.methods import changes_all_weights
from ..progress import Progress
from .device import device_memory, device_name, free_memory
from .job_time import JobTime, sets_of
from .live_words import time_text

if TYPE_CHECKING:
    from ..memory.fit import Predict
    from ..memory.prediction import MemoryPlan
    from ..plan.hardening import HardeningPlan

OnNote = Callable[[list[str]], None]


def opening_lines(
    plan: HardeningPlan,
    device: str,
    needed: MemoryPlan | None,
    records: Iterable[Mapping[str, Any]] = (),
) -> list[str]:
    """Return three lines: the card, the arithmetic, and the memory and time expected.

    plan: decided. needed: None where the memory is not predicted. records: of earlier steps.
    """
    job = JobTime(plan, sets_of(plan))
    job.recall(records)
    return [
        f"device      {_card(device)}",
        f"precision   {_arithmetic(plan, device)}",
        f"expected    {_memory(needed)}; {_time(job)}",
    ]


def memory_warnings(needed: MemoryPlan | None, device: str) -> list[str]:
    """Warn where less memory is free than a run is expected to need."""
    free = free_memory(device)
    if needed is None or free is None or needed.total <= free:
        return []
    way_out = "close other programs, or turn on gradient_checkpointing"
    if changes_all_weights(needed.plan):
        way_out = (
            "take a preset that trains an adapter, such as balanced, or the settings that "
            "`resalign check --budget` proposes"
        )
    return [
        f"about {format_bytes(needed.total)} are needed and {format_bytes(free)} are free on "
        f"{device}: {way_out}. On Windows the driver may move the rest into system memory, which "
        "makes steps many times slower"
    ]


def decide(
    plan: HardeningPlan, device: str, predict: Predict, ranks: int = 1
) -> tuple[HardeningPlan, MemoryPlan | None]:
    """Return the plan as this device has it, and its memory, which is predicted for CUDA alone.

    predict: the memory of a plan without `auto`; takes seconds.
    """
    from ..memory.fit import fit_passes
    from ..model.precision import decided_on, with_precision

    room = free_memory(device)
    if room is None:
        return decided_on(plan, device), None
    return fit_passes(with_precision(plan, device), predict, room, ranks=ranks)


class TimeTeller:
    """Progress callback that says once, after the first measured outer step, how long it takes."""

    def __init__(
        self,
        plan: HardeningPlan,
        records: Iterable[Mapping[str, Any]],
        on_note: OnNote,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._on_note, self._clock = JobTime(plan, sets_of(plan)), on_note, clock
        self._job.recall(records)
        self._told = self._job.left() is not None  # the first message said it

    def __call__(self, progress: Progress, /) -> None:
        if self._told:
            return
        left = self._job(progress, self._clock())
        if progress.stage == "harden" and progress.values and left is not None:
            self._told = True
            if progress.step < progress.total:
                self._on_note([f"expected    about {time_text(left)} left, by the steps so far"])


def _card(device: str) -> str:
    total, free = device_memory(device), free_memory(device)
    if total is None or free is None:
        return device_name(device)
    return f"{device_name(device)}, {format_bytes(total)}, {format_bytes(free)} free"


def _arithmetic(plan: HardeningPlan, device: str) -> str:
    from ..model.precision import needs_all_digits

    parts = [plan.precision]
    if device.startswith("cuda"):
        if plan.precision == "fp32" and not needs_all_digits(plan):
            parts = ["fp32 with TF32"]
        size = micro_batch_of(plan)
        parts.append(f"users at once: {users_at_once_of(plan)}")
        parts.append(f"micro-batch: {size}" if size else "whole batches")
    return ", ".join(parts)


def _memory(needed: MemoryPlan | None) -> str:
    if needed is None:
        return "memory is predicted on CUDA alone"
    return f"{format_bytes(needed.total)} at the peak (predicted)"


def _time(job: JobTime) -> str:
    left = job.left()
    if left is not None:
        return f"about {time_text(left)} left, by the steps before"
    passes = round(job.passes_left())
    return f"the time is known after the first step ({passes:,} passes of the denoiser)"
