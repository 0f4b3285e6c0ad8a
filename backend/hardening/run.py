"""Runs a hardening plan: resumes it, loops over its outer steps, saves and reports each.

This is the only file of the folder that knows the run folder, the ranks and the progress callback.
The algorithm is in `recipe.py`, the methods are in `methods.py`.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..adapter.dense import AnyAdapter
from ..data.batches import EncodedData, shared_data
from ..data.cache import clear_leftovers, fingerprint
from ..model.kernels import Kernels, applied
from ..model.model import Model
from ..model.precision import decided_on
from ..model.quantised import quantised
from ..numerics.determinism import this_machine, threads, told_changes
from ..parallel.ranks import ALONE, Ranks
from ..plan.auto import ON_CPU, decided
from ..plan.hardening import HardeningPlan
from ..progress import Progress, ProgressCallback, rename_stage, silent
from ..run.folder import RunFolder, begun_with
from ..run.rebuild import STAGES
from ..run.records import StepRecord
from .methods import Method, read_plan
from .optimisers import waits
from .setup import Setup, adapted, kernels_of, set_up
from .stages import stage_plans
from .state import State, capture, restore
from .terms import TERM_CLASSES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HardenResult:
    """The result of a run.

    seconds: wall time of this call's steps. kernels: those that the plan's own method trained with.
    """

    adapter: AnyAdapter
    records: tuple[StepRecord, ...]
    plan: HardeningPlan
    seconds: float
    warnings: tuple[str, ...] = ()
    kernels: Kernels | None = None


def harden(
    model: Model,
    plan: HardeningPlan,
    *,
    run_folder: RunFolder | Path | str | None = None,
    data: EncodedData | None = None,
    on_progress: ProgressCallback = silent,
    ranks: Ranks = ALONE,
) -> HardenResult:
    """Find the adapter θ that makes `model` safe and keeps it safe. The model is left unchanged.

    Args:
        run_folder: where plan, records and state are kept; a folder that holds an unfinished run
            of the same plan is continued. None keeps nothing.
        data: sets encoded before; None encodes those that the plan names.
        on_progress: called at every inner step; raise from it to stop. The last complete outer
            step is then saved.
        ranks: the processes that share this run (`join_ranks`); all call this alike, and all
            get the same adapter and records. Only the first rank has `run_folder`.

    Raises:
        ConfigError, DataError: the plan does not fit the model or the data.
        DivergenceError: a loss is not finite; the state before it is saved.
        RankError: another rank failed or died; the last complete outer step is saved.
    """
    with ExitStack() as stack:
        on_progress = ranks.watching(on_progress)
        if ranks.count > 1:
            ranks.require_same(fingerprint(model.denoiser), "the checkpoint")
        folder = None
        if ranks.first:
            plan = decided_on(begun_with(run_folder, plan), model.device)
            folder = RunFolder.of(run_folder, plan)
        if folder is not None:
            if folder is not run_folder:
                stack.enter_context(folder)
            folder.decide(plan)
        plan = decided(plan, **ranks.share({name: getattr(plan, name) for name in ON_CPU}))
        warnings: list[str] = []
        on_cpu = folder is not None and model.device.type == "cpu"
        began = ranks.share(folder.machine(this_machine()) if folder and on_cpu else None)
        if began is not None:
            warnings = told_changes(began, this_machine())
            for warning in warnings:
                log.warning(warning)
            stack.enter_context(threads(began["threads"]))
        stack.enter_context(quantised(model, plan.quantization))
        if data is None:
            cache = folder.path / "cache" if folder else None
            if cache is not None:
                clear_leftovers(cache)
            data = shared_data(ranks, model, plan, cache=cache, on_progress=on_progress)
        data = data.to("cpu", torch.float32)  # only the samples of a step go to the device
        earlier = None
        for name, stage in stage_plans(plan):
            place = RunFolder.of(folder.path / STAGES / name, stage) if folder else None
            with place or nullcontext():
                job = _Run(
                    stage, place, ranks, rename_stage(on_progress, "harden", f"stage {name}")
                )
                done = job.harden(model, data, [], earlier)
            earlier = done.adapter
            warnings += [f"stage {name}: {warning}" for warning in done.warnings]
        return _Run(plan, folder, ranks, on_progress).harden(model, data, warnings, earlier)


def resume(
    model: Model, run_folder: Path | str, *, on_progress: ProgressCallback = silent
) -> HardenResult:
    """Continue the run in `run_folder`; it ends with the same bytes as an uninterrupted run.

    That holds on the CPU, with the same PyTorch on the same kind of processor; otherwise a warning
    says so. The number of threads is set to that of the run's beginning.
    """
    with RunFolder.open(run_folder) as folder:
        return harden(model, folder.plan, run_folder=folder, on_progress=on_progress)


@dataclass(frozen=True, slots=True)
class _Run:
    """One method's run: its plan, and where it is kept, shared and reported."""

    plan: HardeningPlan
    folder: RunFolder | None
    ranks: Ranks
    on_progress: ProgressCallback

    def harden(
        self, model: Model, data: EncodedData, warnings: list[str], earlier: AnyAdapter | None
    ) -> HardenResult:
        """Run the plan's own method, on top of the adapter of the stages before it."""
        method, plan = read_plan(self.plan)
        with adapted(model, plan, earlier) as denoiser:
            setup = set_up(
                denoiser, plan, data, warnings=warnings,
                on_inner_step=lambda step, inner, of, names: self._report(
                    {}, step - 1, inner, of, names
                ),
                compute=partial(
                    self.ranks.spread, classes=TERM_CLASSES,
                    device="cpu" if waits(plan) else model.device,
                ),
                agree=lambda: self.ranks.adopt(denoiser.theta.values()),
                alone=self.ranks.count == 1,
                cache=self.folder.path / "cache" if self.folder else None,
                on_predicted=lambda done, of: self.on_progress(
                    Progress(stage="predicting", step=done, total=of)
                ),
            )  # fmt: skip
            done, records = self._restored(setup)
            method.prepare(setup, done)
            setup.agree()
            denoiser.training(plan.gradient_checkpointing)
            kernels = self._choose_kernels(setup)
            with applied(model.denoiser, kernels):
                started = time.perf_counter()
                self._loop(method, setup, done, records)
                setup.settle()
                adapter = denoiser.adapter()
                if self.folder:
                    self._save(capture(setup, self.plan.outer_steps))
                    self.folder.save_adapter(adapter, {"step": self.plan.outer_steps})
                seconds = time.perf_counter() - started
            return HardenResult(
                adapter, tuple(records), self.plan, seconds, tuple(warnings), kernels
            )

    def _restored(self, setup: Setup) -> tuple[int, list[StepRecord]]:
        """Restore the last saved state, if any; return its step and the records up to it."""
        saved = self.ranks.share(self.folder.load_state() if self.folder else None)
        records = self.ranks.share(self.folder.records() if self.folder else [])
        if saved is None:
            return 0, []
        step, tensors, values = saved
        restore(setup, step, tensors, values)
        return step, [StepRecord.from_json(record) for record in records[:step]]

    def _choose_kernels(self, setup: Setup) -> Kernels:
        """Use the first rank's choice on all ranks, and record it before the first step."""
        chosen: dict[str, Any] = {}
        if self.ranks.first:
            began = self.folder.kernels() if self.folder else None
            chosen = kernels_of(setup, began).to_json()
            if self.folder:
                self.folder.save_kernels(chosen)
        return Kernels(**self.ranks.share(chosen))

    def _loop(self, method: Method, setup: Setup, done: int, records: list[StepRecord]) -> None:
        """Take the outer steps after `done`; whatever stops them, the last complete one is kept."""
        dense = method.facts.dense
        for step in range(done + 1, self.plan.outer_steps + 1):
            # Copying all weights before every step would take longer than the step. They change
            # only at its end, so that an interrupted one is copied where it stopped.
            complete = capture(setup, step - 1) if self.folder and not dense else None
            try:
                record = method.step(setup, step)
            except BaseException:  # an interrupt, a bug or a divergence
                if dense and self.folder and setup.whole:
                    complete = capture(setup, step - 1)
                self._save(complete)
                raise
            records.append(record)
            if self.folder:
                self.folder.append(record.to_json())
                if step % self.plan.save_every == 0:
                    self._save(capture(setup, step))
            try:
                self._report(record.values(), step)
            except BaseException:  # stopped between two steps: the one just done is kept too
                self._save(capture(setup, step) if self.folder else None)
                raise

    def _save(self, state: State | None) -> None:
        if self.folder is not None and state is not None:
            self.folder.save_state(state.step, state.tensors, state.values)

    def _report(
        self, values: dict[str, float], step: int, inner: int = 0, of: int = 0, names: str = ""
    ) -> None:
        self.on_progress(
            Progress(
                stage="harden", step=step, total=self.plan.outer_steps,
                micro_step=inner, micro_total=of, values=values, message=names,
            )
        )  # fmt: skip
