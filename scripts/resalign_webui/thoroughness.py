"""The choice "How thorough": its labels, with a time each, and the line below it."""

from __future__ import annotations

import os

from ...backend.plan import durations
from ...backend.plan.durations import COMMON, Pace, Passes
from ...backend.plan.methods import FACTS
from ...backend.plan.presets import PLAN_PRESETS, plan_preset
from .host import DEMO

PRESETS = tuple(name for name in durations.ORDER if name != "custom")
RECOMMENDED = ("fast", "balanced", "durable")  # the others are shown on demand
DEMO_STEPS = {"fast": 20, "balanced": 120, "thorough": 240, "durable": 300, "durable-max": 600}
# Passes of the demo's own settings, as `jobs.job_time` counts them (a test compares)
DEMO_PASSES = {
    "fast": Passes(3_024, 2_640), "edit": Passes(2_976, 72), "redirect": Passes(3_504, 8_640),
    "balanced": Passes(3_504, 15_840), "paper": Passes(3_504, 15_840),
    "thorough": Passes(4_080, 31_680), "durable": Passes(13_584, 20_224),
    "durable-max": Passes(15_024, 39_424),
}  # fmt: skip
# Seconds of a pass of the demo on a CPU with two threads, and with one, as far as it is free. That
# with one is the best of six drawings on a busy machine; its training was not measured.
DEMO_PACE, ONE_THREAD = Pace(0.015, 0.015), Pace(0.018, 0.018)


def worker_threads() -> int:
    """Return the threads that a worker computes on: it inherits this process's variables."""
    chosen = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(chosen) if chosen.isdigit() and int(chosen) else os.cpu_count() or 1


def demo_pace() -> tuple[Pace, str]:
    """Return what the demo takes on this machine's CPU, unmeasured, and in words on what."""
    if worker_threads() > 1:
        return DEMO_PACE, "on two free CPU cores"
    return ONE_THREAD, "on one free CPU core"


def demo_steps(preset: str) -> int:
    """Return the outer steps of a preset on the embedded demo checkpoint."""
    method = plan_preset(preset).fields.get("method") if preset in PLAN_PRESETS else None
    if method in FACTS and FACTS[method].single_step:
        return 1
    return DEMO_STEPS.get(preset, DEMO_STEPS["balanced"])


def preset_choices(
    checkpoint: str,
    pace: Pace | None = None,
    *,
    every: bool = True,
    chosen: str = "",
    unknown: str = "",
) -> list[tuple[str, str]]:
    """Return the choices of thoroughness as (label, value): name, time and purpose.

    Their order never depends on the checkpoint: a choice would move away under the pointer.
    every: also those that are not recommended, of which `chosen` is there in any case. unknown: why
    no time is known before one is measured, which leaves the times out; the demo's are known.
    """
    names = [name for name in PRESETS if every or name in (*RECOMMENDED, chosen)]
    if unknown and pace is None and checkpoint != DEMO:
        return [(f"{durations.NAMES[name]}: {durations.PURPOSES[name]}", name) for name in names]
    times = [durations.short_words_of(_seconds(name, checkpoint, pace)) for name in names]
    return [
        (f"{durations.NAMES[name]}: {time}; {durations.PURPOSES[name]}", name)
        for name, time in zip(names, times, strict=True)
    ]


def preset_line(
    name: str, checkpoint: str, pace: Pace | None = None, measured: str = "", unknown: str = ""
) -> str:
    """Say how long a preset takes and what it is for; the demo has settings of its own.

    pace: that of this checkpoint on this machine, where a job has measured it. measured: when, and
    on which device. unknown: why no time is known before one is measured.
    """
    if name not in PRESETS:
        return ""
    time = durations.words_of(_seconds(name, checkpoint, pace))
    meaning = durations.MEANINGS[name]
    said = f"{meaning[0].upper()}{meaning[1:]}."
    if unknown and pace is None and checkpoint != DEMO:
        return f"{durations.NAMES[name]}. {said} {unknown}"
    if checkpoint == DEMO:
        steps = demo_steps(name)
        where = "" if pace else f" {demo_pace()[1]}"
        where += f" ({steps} step{'s' * (steps > 1)}, the demo's own settings)"
        assumed = ""
    else:
        where = ""
        assumed = f"{durations.TIMES} After a test run of this checkpoint, they are measured."
    if name == "fast" and _seconds(name, checkpoint, pace) > _seconds("edit", checkpoint, pace):
        said += " It takes longer than Quick edit, which simulates no users and has one step."
    if pace is not None:
        assumed = f"Times follow from a job here with this checkpoint ({measured})."
    return f"{durations.NAMES[name]}, {time}{where}. {said} {assumed}".rstrip()


def _seconds(name: str, checkpoint: str, pace: Pace | None) -> float:
    passes = DEMO_PASSES if checkpoint == DEMO else durations.PASSES
    assumed = demo_pace()[0] if checkpoint == DEMO else COMMON
    return passes[name].seconds(pace or assumed)
