"""ResAlign on one page: harden a model so that it stays safe when others fine-tune it.

    F(θ) = L_harm(θ) + λ · mean_j [L_harm(θ*_j) − L_harm(θ)] + μ · L_retain(θ)

After a warm-up of plain unlearning (λ = 0), each outer step draws J fine-tuning configurations,
simulates those users from θ to θ*_j, and descends the hypergradient of F with AdamW. Gradients
are accumulated term by term: only one graph is alive at a time.
Source: Li et al., arXiv:2507.16302, algorithm 2; what differs is in docs/method.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapter.apply import AdaptedDenoiser
from ..adapter.lora import Adapter
from ..bilevel.closed_form import edit_adapter
from ..bilevel.feed import Feed
from ..bilevel.losses import remaining_harm
from ..bilevel.objective import Harm, Objective
from ..bilevel.projection import retain_projection
from ..bilevel.regulator import Regulator
from ..bilevel.simulate import USER_CLASSES, SimulatedUser, accumulate
from ..bilevel.users import Users
from ..bilevel.vectors import gradient, norm_and_clip
from ..bilevel.weights import learning_rate, resilience_weight, retain_weight
from ..data.batches import EncodedData, shared_data
from ..data.cache import fingerprint
from ..errors import DivergenceError
from ..model.kernels import Kernels, applied, choose_kernels, optimiser_options
from ..model.model import Model
from ..model.quantised import quantised
from ..numerics.determinism import this_machine, threads, told_changes
from ..parallel.ranks import ALONE, Ranks
from ..plan.hardening import HardeningPlan
from ..progress import Progress, ProgressCallback, rename_stage, silent
from ..run.folder import RunFolder
from ..run.records import SimulationRecord, StepRecord
from .stages import FOLDER as STAGES
from .stages import stage_plans

_MOST_LOST = 0.05  # share of a closed form that its rank may leave out without a warning

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HardenResult:
    """What a run ends with. `seconds` is wall time of this call, without the data's; `kernels`
    what the plan's own method trained with."""

    adapter: Adapter
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
    """Find the adapter θ that makes `model` safe and keeps it so. The model is left as it was.

    Args:
        run_folder: where plan, records and state go; a folder that holds an unfinished run of
            the same plan is continued. None keeps nothing.
        data: sets encoded before; None encodes what the plan names.
        on_progress: called at every inner step; raise from it to stop (the last complete
            outer step is then saved).
        ranks: the processes that share this run (`join_ranks`); all call this alike, and all
            get the same adapter and records. `run_folder` is the first rank's alone.

    Raises:
        ConfigError, DataError: the plan does not fit the model or the data.
        DivergenceError: a loss is not finite; the state before it is saved.
        RankError: another rank failed or died; the last complete outer step is saved.
    """
    with ExitStack() as stack:
        on_progress = ranks.watching(on_progress)
        if ranks.count > 1:
            ranks.require_same(fingerprint(model.denoiser), "the checkpoint")
        folder = RunFolder.of(run_folder, plan) if ranks.first else None
        if folder is not None and folder is not run_folder:
            stack.enter_context(folder)
        warnings = []
        on_cpu = folder is not None and model.device.type == "cpu"
        began = ranks.share(folder.machine(this_machine()) if folder and on_cpu else None)
        if began is not None:
            warnings = told_changes(began, this_machine())
            stack.enter_context(threads(began["threads"]))
        stack.enter_context(quantised(model, plan.quantization))
        if data is None:
            cache = folder.path / "cache" if folder else None
            data = shared_data(ranks, model, plan, cache=cache, on_progress=on_progress)
        data = data.to("cpu", torch.float32)  # only what a step draws goes to the device
        earlier = None
        for name, stage in stage_plans(plan):
            place = RunFolder.of(folder.path / STAGES / name, stage) if folder else None
            with place or nullcontext():
                told = rename_stage(on_progress, "harden", f"stage {name}")
                earlier = _run(model, stage, data, place, told, ranks, [], earlier).adapter
        return _run(model, plan, data, folder, on_progress, ranks, warnings, earlier)


def resume(
    model: Model, run_folder: Path | str, *, on_progress: ProgressCallback = silent
) -> HardenResult:
    """Continue the run in `run_folder`; ends with the same bytes as one never interrupted.

    That holds on the CPU, with the same PyTorch on the same kind of processor (else a warning
    says so); the number of threads is set to that of the run's beginning.
    """
    with RunFolder.open(run_folder) as folder:
        return harden(model, folder.plan, run_folder=folder, on_progress=on_progress)


def _run(
    model: Model,
    plan: HardeningPlan,
    data: EncodedData,
    folder: RunFolder | None,
    on_progress: ProgressCallback,
    ranks: Ranks,
    warnings: list[str],
    earlier: Adapter | None,
) -> HardenResult:
    """The plan's own method, on top of what the stages before it left."""
    shape = plan.adapter
    if plan.method == "closed_form":
        shape = replace(shape, targets=("cross_attention_kv",))
    with AdaptedDenoiser(
        model, shape, seed=plan.seed, precision=plan.precision, earlier=earlier
    ) as denoiser:
        run = _Run(denoiser, plan, data, folder, on_progress, ranks, warnings=warnings)
        denoiser.training(plan.gradient_checkpointing)
        run.kernels = kernels = run.choose_kernels()
        with applied(model.denoiser, kernels):
            return run.to_the_end()


@dataclass
class _Run:
    """The state of a run between two outer steps, and the steps themselves."""

    denoiser: AdaptedDenoiser
    plan: HardeningPlan
    data: EncodedData
    folder: RunFolder | None
    on_progress: ProgressCallback
    ranks: Ranks = ALONE
    records: list[StepRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    kernels: Kernels | None = None

    def __post_init__(self) -> None:
        for warning in self.warnings:
            log.warning(warning)
        plan, self.theta = self.plan, self.denoiser.theta
        device = self.denoiser.model.device
        schedule = self.denoiser.model.schedule.to(device)
        harm = replace(plan.harm, loss="redirect") if plan.method == "redirect" else plan.harm
        objective = Objective(self.denoiser, schedule, harm, plan.micro_batch)
        self.feed = Feed(plan, self.data, objective, schedule, device)
        self.regulator = Regulator(plan.regulator)
        self.users = Users(
            self.denoiser, plan, self.feed, self.regulator,
            lambda step, *inner: self._tell({}, step - 1, *inner),
        )  # fmt: skip
        self.optimiser = torch.optim.AdamW(
            self.theta.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay,
            **optimiser_options(device),
        )  # fmt: skip
        self.step = self._load()
        self.projection = None
        if plan.method == "project":
            self.projection = retain_projection(self.denoiser, self.feed, plan.projection)
            if self.step == 0:  # later it would change the last bits
                self.projection.apply(self.theta)
        self.ranks.adopt(self.theta.values())

    def to_the_end(self) -> HardenResult:
        started = time.perf_counter()
        while self.step < self.plan.outer_steps:
            complete = self._state() if self.folder else {}
            try:
                record = self.outer_step(self.step + 1)
            except BaseException:  # interrupt, bug or divergence: keep the last complete step
                self._save(complete)
                raise
            self.step += 1
            self.records.append(record)
            if self.folder:
                self.folder.append(record.to_json())
            if self.folder and self.step % self.plan.save_every == 0:
                self._save(self._state())
            try:
                self._tell(record.values(), self.step)
            except BaseException:  # stopped between two steps: the one just done is kept too
                self._save(self._state() if self.folder else {})
                raise
        adapter = self.denoiser.adapter()
        if self.folder:
            self._save(self._state())
            self.folder.save_adapter(adapter, {"step": self.step})
        seconds = time.perf_counter() - started
        return HardenResult(
            adapter, tuple(self.records), self.plan, seconds, tuple(self.warnings), self.kernels
        )

    def choose_kernels(self) -> Kernels:
        """The first rank's choice, for all; written down before the first step."""
        plan, folder, model = self.plan, self.folder, self.denoiser.model
        exact = plan.solver.method != "first_order" and plan.solver.products == "exact"
        chosen: dict[str, Any] = {}
        if self.ranks.first:
            found = choose_kernels(
                model.denoiser, plan.kernels, lambda: gradient(self.feed.retain(1), self.theta),
                twice=exact and plan.method == "resalign" and bool(plan.fine_tunes),
                own=model.source is not None, began=folder.kernels() if folder else None,
            )  # fmt: skip
            chosen = found.to_json()
            if folder:
                folder.save_kernels(chosen)
        return Kernels(**self.ranks.share(chosen))

    def outer_step(self, step: int) -> StepRecord:
        """One update of θ: the three terms, one after the other, then AdamW."""
        if self.plan.method == "closed_form":
            return self._edit(step)
        started = time.perf_counter()
        strength, retention = resilience_weight(self.plan, step), retain_weight(self.plan, step)
        total = {name: torch.zeros_like(tensor) for name, tensor in self.theta.items()}
        scale = self.denoiser.loss_scale

        harm = self.feed.harm(step)
        retain = self.feed.retain(step)
        keep = self.plan.retain_after_weight / strength if strength else 0.0
        chosen = self.feed.configurations(step) if strength > 0 else []

        # Each rank does some of these terms; all get all results, summed up in one order.
        terms: list[tuple[float, Callable[[], Any]]] = [
            (1.0, lambda: gradient(harm.loss, self.theta, scale=scale)),
            (1.0, lambda: gradient(retain, self.theta, scale=scale)),
        ]
        terms += self.users.tasks(step, chosen, harm, retain, keep)
        device = self.denoiser.model.device
        results = self.ranks.spread(terms, USER_CLASSES, device)
        harm_now, gradients = next(results)
        accumulate(total, gradients, 1 - strength)
        retain_now, gradients = next(results)
        accumulate(total, gradients, retention)
        users: list[SimulatedUser] = []
        for group in results:
            for user in group:
                accumulate(total, user.gradient.values(), strength / len(chosen))
            users += group

        norm = norm_and_clip(list(total.values()), self.plan.gradient_norm)
        after = {f"harm after {u.fine_tune.name}": u.result.harm_after for u in users}
        self._check_finite(step, harm=harm_now, retain=retain_now, **after, gradient=norm)
        simulations = self._judge(users, harm, harm_now)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.plan, step)
        for tensor, part in zip(self.theta.values(), total.values(), strict=True):
            tensor.grad = part
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.projection:
            self.projection.apply(self.theta)
        self.ranks.adopt(self.theta.values())  # ranks on unlike hardware must not drift apart
        return StepRecord(
            step=step,
            harm=float(harm_now),
            retain=float(retain_now),
            resilience_weight=strength,
            retain_weight=retention,
            learning_rate=learning_rate(self.plan, step),
            gradient_norm=float(norm),
            seconds=time.perf_counter() - started,
            simulations=simulations,
        )

    def _edit(self, step: int) -> StepRecord:
        """The closed form: θ in one go, then what harm and retention are with it."""
        started, plan = time.perf_counter(), self.plan
        lost = edit_adapter(self.denoiser, plan, self.data)
        self.ranks.adopt(self.theta.values())
        if lost > _MOST_LOST:
            rank = plan.adapter.rank
            self._warn(f"rank {rank} holds {1 - lost:.0%} of the edit: raise adapter.rank")
        with torch.no_grad():
            harm, retain = self.feed.harm(step).loss(), self.feed.retain(step)()
        self._check_finite(step, harm=harm, retain=retain)
        return StepRecord(
            step=step, harm=float(harm), retain=float(retain), resilience_weight=0.0,
            retain_weight=plan.edit.retain_weight, learning_rate=0.0, gradient_norm=0.0,
            seconds=time.perf_counter() - started, simulations=(),
        )  # fmt: skip

    def _judge(
        self, users: list[SimulatedUser], harm: Harm, harm_now: Tensor
    ) -> tuple[SimulationRecord, ...]:
        """Put the runs into figures, and let the regulator adjust their lengths by q."""
        records = []
        for user in users:
            q = float(remaining_harm(user.result.harm_after, harm_now, harm.base))
            records.append(SimulationRecord.of(user, q))
        for user, record in zip(users, records, strict=True):
            warning = self.regulator.update(user.fine_tune, record.q)
            if warning:
                self._warn(warning)
        return tuple(records)

    def _warn(self, warning: str) -> None:
        log.warning(warning)
        self.warnings.append(warning)

    def _check_finite(self, step: int, **values: Tensor) -> None:
        bad = [name for name, value in values.items() if not bool(torch.isfinite(value))]
        if bad:
            knobs = (
                "lower the learning_rate or steps of that fine-tuning configuration"
                if any(name.startswith("harm after") for name in bad)
                else f"lower learning_rate ({self.plan.learning_rate:g}) or harm.cap, raise "
                "retain_weight, or use precision fp32 or bf16"
            )
            raise DivergenceError(
                f"outer step {step}: {', '.join(bad)} is not finite; the state after step "
                f"{step - 1} is kept: {knobs}"
            )

    # Keeping and telling.

    def _load(self) -> int:
        saved = self.ranks.share(self.folder.load_state() if self.folder else None)
        records = self.ranks.share(self.folder.records() if self.folder else [])
        if saved is None:
            return 0
        step, tensors, values = saved
        fused = optimiser_options(self.denoiser.model.device)  # which counts on the device
        place = self.denoiser.model.device if fused else "cpu"
        for index, (name, tensor) in enumerate(self.theta.items()):
            with torch.no_grad():
                tensor.copy_(tensors["theta." + name])
            if f"exp_avg.{index}" in tensors:  # a closed form has none
                self.optimiser.state[tensor] = {
                    "step": torch.tensor(float(step), device=place),
                    "exp_avg": tensors[f"exp_avg.{index}"].to(tensor.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{index}"].to(tensor.device),
                }
        self.regulator.restore(values["regulator"])
        self.warnings = list(dict.fromkeys([*values["warnings"], *self.warnings]))
        self.records = [StepRecord.from_json(r) for r in records[:step]]
        return step

    def _state(self) -> dict[str, Tensor]:
        """Copies of all that an outer step changes, but for the regulator's few numbers."""
        tensors = {"theta." + name: t.detach().cpu().clone() for name, t in self.theta.items()}
        for index, tensor in enumerate(self.theta.values()):
            for part in ("exp_avg", "exp_avg_sq") if tensor in self.optimiser.state else ():
                tensors[f"{part}.{index}"] = self.optimiser.state[tensor][part].cpu().clone()
        self._values = {"regulator": self.regulator.state(), "warnings": list(self.warnings)}
        return tensors

    def _save(self, tensors: dict[str, Tensor]) -> None:
        """Write a state taken by `_state`: that of the end of `self.step`."""
        if self.folder is None:
            return
        self.folder.save_state(self.step, tensors, self._values)

    def _tell(
        self, values: dict[str, float], step: int, micro: int = 0, of: int = 0, message: str = ""
    ) -> None:
        self.on_progress(
            Progress(
                stage="harden", step=step, total=self.plan.outer_steps,
                micro_step=micro, micro_total=of, values=values, message=message,
            )
        )  # fmt: skip
