"""Hardening runs of the nodes: begun, continued and found again in their folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import types

if TYPE_CHECKING:
    from torch import Tensor

    from ..backend.model.model import Model
    from ..backend.plan.hardening import HardeningPlan
    from ..backend.run.folder import RunFolder

NEXT_STEP = "measure it with Resilience Probe"
SOURCE = "source.json"  # in the run folder: describes the MODEL that was hardened


def run_plan(
    hidden: Any,
    model: Any,
    clip: Any,
    vae: Any,
    plan: HardeningPlan,
    folder: Path,
    source: Path | None,
    previews: tuple[int, str, bool],
) -> None:
    """Take the steps of a plan that are left; the folder keeps everything.

    previews: steps between two, the prompt, and whether to show them without blur.
    """
    from ..backend.jobs.harden import harden_job
    from ..backend.jobs.opening import opening_lines
    from ..backend.jobs.previews import PreviewSettings
    from ..backend.jobs.spill import SpillWatch
    from ..backend.jobs.verdict import of_run
    from ..backend.progress import chain
    from . import memory
    from .live import Live, check_interrupt, stopped_after

    every, prompt, show = previews
    device, records = memory.device_name(), saved_records(folder)
    live = Live(hidden, "harden", plan.outer_steps, show_pictures=show)
    begun: list[RunFolder] = []

    def on_ready(run: RunFolder, report: object) -> None:
        begun.append(run)
        live.keep_first_pictures(folder, resumed=run.steps_saved > 0)

    try:
        live.note("reading the plan")
        live.plan(plan, records, every=every)
        plan, needed = memory.decided(model, plan, live.note)
        live.show_lines([*opening_lines(plan, device, needed, records), *memory.warned(needed)])
        harden_job(
            plan, folder=folder, model=_opened(model, clip, vae, plan, folder, source),
            previews=PreviewSettings(
                show=live.picture, every=every, prompt=prompt, check=check_interrupt,
                on_progress=live,
            ),
            on_ready=on_ready,
            on_progress=chain(live, SpillWatch(device, live.show_lines)),
        )  # fmt: skip
    except BaseException as error:
        step = begun[0].steps_saved if begun else 0
        live.ended_by(error, stopped_after(step, plan.outer_steps))
        raise
    live.finish(*of_run(plan, NEXT_STEP, saved_harms(folder)))


def saved_steps(folder: Path) -> int:
    """Return how many outer steps of a run are saved."""
    return len(saved_records(folder))


def saved_harms(folder: Path) -> list[float]:
    """Return the harm loss of each saved step of a run."""
    from ..backend.jobs.verdict import harms_of

    return harms_of(saved_records(folder))


def saved_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the steps that an earlier session has saved."""
    from ..backend.errors import ResAlignError
    from ..backend.run.folder import RunFolder

    if not (folder / "plan.json").is_file():
        return []
    try:
        run = RunFolder.open(folder, read_only=True)
        return list(run.records()[: run.steps_saved])
    except ResAlignError:  # the run itself says what is wrong with it
        return []


def place_of_run(
    plan: HardeningPlan, key_of: Callable[[HardeningPlan], str], device: str
) -> tuple[HardeningPlan, Path]:
    """Return the plan with its precision decided, and the folder of its run.

    A run that has begun in another precision, on another device or by an older version, is
    continued in it. key_of: the folder's name of a plan.
    """
    from typing import get_args

    from ..backend.model.precision import with_precision
    from ..backend.plan.auto import AUTO
    from ..backend.plan.kernels import Precision
    from ..backend.run.folder import begun_with
    from . import places

    best = with_precision(plan, device)
    others = [replace(plan, precision=one) for one in get_args(Precision)]
    for one in (best, *others) if plan.precision == AUTO else (best,):
        folder = places.runs() / key_of(one)
        if (folder / "plan.json").is_file():
            return begun_with(folder, one), folder
    return best, places.runs() / key_of(best)


def stored_run(folder: Path, plan: HardeningPlan) -> types.HardenedRun | None:
    """Return the finished run of this plan, if there is one."""
    from ..backend.run.folder import RunFolder
    from ..backend.run.records import StepRecord
    from ..backend.run.sealed import read_json

    if not (folder / "plan.json").is_file() or not (folder / SOURCE).is_file():
        return None
    run = RunFolder.open(folder, plan, read_only=True)
    if not run.finished:
        return None
    about = read_json(folder / SOURCE)
    adapter, _ = run.load_adapter()
    return types.HardenedRun(
        plan=run.plan,
        adapter=adapter,
        records=tuple(StepRecord.from_json(record) for record in run.records()),
        folder=folder,
        family=about["family"],
        key_map=about["key_map"],
        source=Path(about["checkpoint"]) if about["checkpoint"] else None,
        patched=about["patched"],
        weights=about.get("weights", {}),
        samples=about["samples"],
        prediction=str(about.get("prediction", "")),
    )


@contextmanager
def _opened(
    model: Any, clip: Any, vae: Any, plan: HardeningPlan, folder: Path, source: Path | None
) -> Iterator[Model]:
    """Build the backend's Model, in the types that the plan asks for, and describe it on disk."""
    from ..backend.memory.weights import weight_types
    from ..backend.run.sealed import write_json
    from . import bridge

    kind = weight_types(plan)["denoiser_dtype"]
    with bridge.to_backend(model, clip, vae, source=source, denoiser_dtype=kind) as loaded:
        decision = bridge.process_decision(loaded.process)
        about = describe_source(model, clip, loaded.denoiser.state_dict(), source, decision)
        write_json(folder / SOURCE, about)
        yield loaded


def describe_source(
    model: Any, clip: Any, weights: Mapping[str, Tensor], source: Path | None, prediction: str
) -> dict[str, Any]:
    """Describe the MODEL for its run's folder. weights: `<module>.weight` of the denoiser."""
    from . import bridge
    from .samples import samples_of

    key_map = bridge.key_map(model)
    modules = [name for name in key_map if _is_matrix(weights, name)]
    return {
        "checkpoint": str(source) if source else "",
        "patched": bridge.is_patched(model),
        "family": bridge.family_of(model).name,
        "key_map": key_map,
        "samples": samples_of(weights, modules),
        "weights": bridge.weights_of(model, clip),
        "prediction": prediction,
    }


def _is_matrix(weights: Any, module: str) -> bool:
    return module + ".weight" in weights and weights[module + ".weight"].dim() >= 2
