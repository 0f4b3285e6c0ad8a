"""How long a probe of the page Probe takes, from passes of the denoiser. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...backend.data.concept import load_preset
from ...backend.demo.plans import demo_probe, prompted_plan
from ...backend.errors import ResAlignError
from ...backend.plan import durations
from ...backend.plan.durations import COMMON, Pace, Passes
from ...backend.plan.file import from_json
from ...backend.plan.probe import ProbePlan
from ...backend.plan.probe_settings import probe_plan
from ...backend.probe.cost import plan_cost
from ...backend.text import json_text
from . import graphics, measure_forms
from . import pace as paces
from .checking import Values
from .host import DEMO, Host, work_folder
from .measure_forms import THE_RUN, is_demo
from .runs import Run, named
from .thoroughness import demo_pace

# Of the page's form, what a probe's time follows from
FIELDS = (
    "attacks", "probe_run", "original", "device", "attack_steps", "probe_images", "sampling_steps",
    "probe_concepts", "probe_own_concepts", "style_folder", "sibling", "plain", "oracle",
)  # fmt: skip


def line_of(values: Values, runs: list[Run], host: Host) -> str:
    """Say how long the probe that a form asks for takes; empty where no checkpoint is chosen.

    The run's checkpoint counts where no other is chosen.
    """
    original, device = values.get("original"), values.get("device")
    run = named(values.get("probe_run"), runs)
    files = dict(host.checkpoints())
    path = str(files[original].absolute()) if original in files else ""
    if run is not None and original in (None, "", THE_RUN):
        path = run.checkpoint
    demo = original == DEMO or (bool(path) and is_demo(path))
    if (not path and not demo) or values.get("attacks") not in measure_forms.ATTACKS:
        return ""
    chosen = str(device or host.setting("device"))
    found = paces.known(work_folder(host), "demo" if demo else path, None, chosen, probe=True)
    known: dict[str, Any] = {"pace": found[0], "measured": found[1]} if found else {}
    passes = passes_of(values, run, host, demo=demo)
    said = probe_line(passes, demo=demo, unknown=graphics.lacking(device, host), **known)
    return said[:1].upper() + said[1:]


def remember(folder: Path, state: Mapping[str, Any]) -> None:
    """Keep how long a whole probe took for its passes. folder: of the tab; state: its last."""
    seconds, request = state.get("seconds"), state.get("request") or {}
    if (state.get("job"), state.get("status")) != ("probe", "done") or not seconds:
        return
    try:
        job = json_text.read(Path(request["folder"]) / "job.json")
        path, device = str(job["checkpoints"][0]["path"]), str(job.get("device") or "")
        plan = from_json(ProbePlan, job["plan"])
        cost = plan_cost(plan, len(job["checkpoints"]))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ResAlignError):
        return
    found = paces.known(folder, path, None, device or "auto")
    pace = found[0] if found else demo_pace()[0] if is_demo(path) else COMMON
    passes = Passes(round(cost.drawing), round(cost.training))
    factor = seconds / passes.seconds(pace)
    slower = Pace(pace.drawing * factor, pace.training * factor)
    paces.remember_probe(folder, path, plan.resolution, device, slower)


def passes_of(values: Values, run: Run | None, host: Host, *, demo: bool) -> Passes:
    """Return the passes of the probe that a form asks for.

    Where it cannot be asked for yet, as no concept is chosen, they are those of one concept.
    """
    try:
        plan = measure_forms.asked_plan(values, host, run)
    except ResAlignError:
        plan = _usual_plan(values, demo)
    models = 2 + sum(values.get(role) not in (None, "", "none") for role in ("plain", "oracle"))
    try:
        cost = plan_cost(demo_probe(plan) if demo else plan, models)
    except ResAlignError:  # a concept without a prompt
        cost = plan_cost(_usual_plan(values, demo), models)
    return Passes(round(cost.drawing), round(cost.training))


def _usual_plan(values: Values, demo: bool) -> ProbePlan:
    """Return the plan of a choice, for one concept, with what was typed in, if that is valid."""
    concepts = prompted_plan().concepts if demo else (load_preset("weapons").concept(),)
    try:
        typed = measure_forms.typed_inputs(values)
    except ResAlignError:
        typed = {}
    return probe_plan(str(values["attacks"]), concepts, **typed)


def probe_line(
    passes: Passes, *, demo: bool, pace: Pace | None = None, measured: str = "", unknown: str = ""
) -> str:
    """Say how long a probe takes. pace: of this checkpoint on this machine, where it is known.

    measured: when, and on which device. unknown: why no time is known before one is measured.
    """
    assumed, where = demo_pace() if demo else (COMMON, "on a GPU")
    time = durations.words_of(passes.seconds(pace or assumed))
    if pace is not None:
        return f"{time}, by the pace of a job here with this checkpoint ({measured})."
    if demo:
        return f"{time} {where}, not measured here."
    return unknown or f"{time} {where}: {durations.TIMES[0].lower()}{durations.TIMES[1:]}"
