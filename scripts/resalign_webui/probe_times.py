"""How long each choice of the page Probe takes, from passes of the denoiser. Without torch."""

from __future__ import annotations

from typing import Any

from ...backend.plan import durations
from ...backend.plan.durations import COMMON, Pace, Passes
from . import graphics
from . import pace as paces
from .host import DEMO, Host, work_folder
from .measure_forms import THE_RUN, is_demo
from .runs import Run
from .thoroughness import demo_pace

# Passes of a probe of two models and one concept, as `probe.cost` counts them (a test compares)
PASSES = {
    "quick": Passes(33_024, 4_800), "standard": Passes(469_248, 52_800),
    "thorough": Passes(10_683_648, 1_204_800), "paper": Passes(553_456, 28_800),
}  # fmt: skip
DEMO_PASSES = {
    "quick": Passes(22_464, 4_800), "standard": Passes(188_208, 52_800),
    "thorough": Passes(4_306_608, 1_204_800), "paper": Passes(259_456, 28_800),
}  # fmt: skip


def line_of(attacks: str, original: Any, run: Run | None, host: Host, device: Any = "") -> str:
    """Say how long a probe of a checkpoint takes; empty where none is chosen.

    original: of the list. run: the one that was chosen, whose checkpoint counts without another.
    device: of the form; empty for the host's setting.
    """
    files = dict(host.checkpoints())
    path = str(files[original].absolute()) if original in files else ""
    if run is not None and original in (None, "", THE_RUN):
        path = run.checkpoint
    demo = original == DEMO or (bool(path) and is_demo(path))
    if not path and not demo:
        return ""
    chosen = str(device or host.setting("device"))
    found = paces.known(work_folder(host), "demo" if demo else path, None, chosen)
    known: dict[str, Any] = {"pace": found[0], "measured": found[1]} if found else {}
    said = probe_line(attacks, demo=demo, unknown=graphics.lacking(device, host), **known)
    return said[:1].upper() + said[1:]


def probe_line(
    attacks: str, *, demo: bool, pace: Pace | None = None, measured: str = "", unknown: str = ""
) -> str:
    """Say how long a choice takes. pace: of this checkpoint on this machine, where it is known.

    measured: when, and on which device. unknown: why no time is known before one is measured.
    """
    passes = (DEMO_PASSES if demo else PASSES).get(attacks)
    if passes is None:
        return ""
    assumed, where = demo_pace() if demo else (COMMON, "on a GPU")
    time = durations.words_of(passes.seconds(pace or assumed))
    if pace is not None:
        return f"{time}, by the pace of a job here with this checkpoint ({measured})."
    if demo:
        return f"{time} {where}, not measured here."
    return unknown or f"{time} {where}: {durations.TIMES[0].lower()}{durations.TIMES[1:]}"
