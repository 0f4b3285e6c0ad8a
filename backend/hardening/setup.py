"""Builds what the steps of a run need: objective, feed, simulated users, optimiser, regulator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapter.apply import AdaptedDenoiser
from ..adapter.dense import AnyAdapter
from ..adapter.dense_denoiser import DenseDenoiser
from ..adapter.passes import Trained
from ..bilevel.hypergradient import differentiates_twice
from ..bilevel.objective import Objective
from ..bilevel.vectors import gradient
from ..data.batches import EncodedData
from ..data.cache import EncodingCache
from ..errors import ConfigError
from ..model.kernels import Kernels, choose_kernels
from ..model.model import Model
from ..model.precision import decided_on, decided_precision, needs_all_digits
from ..plan.auto import micro_batch_of
from ..plan.hardening import HardeningPlan
from ..plan.methods import FACTS, misfit
from .average import Average
from .feed import Feed
from .optimisers import make_optimiser
from .regulator import Regulator
from .stored import OnPredicted, StoredPredictions, stored_key
from .terms import Compute, in_order
from .users import OnInnerStep, Users

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Setup:
    """The parts of a run that its steps work with, and change.

    plan: as its method reads it (`Method.read`). compute: runs the tasks of a step. agree: called
    after each change of θ, to make it the same in all processes. constrain: called after each
    update of θ, to keep it where the method allows it to be. alone: no other process shares the
    run. average: of θ over the steps, where the plan asks for it; it is the result. whole: False
    while θ is being changed, when no state can be saved.
    """

    plan: HardeningPlan
    denoiser: Trained
    data: EncodedData
    feed: Feed
    regulator: Regulator
    users: Users
    optimiser: torch.optim.Optimizer
    warnings: list[str]
    compute: Compute
    agree: Callable[[], None]
    constrain: Callable[[], None] = field(default=lambda: None)
    alone: bool = True
    average: Average | None = None
    whole: bool = True

    @property
    def theta(self) -> dict[str, Tensor]:
        return self.denoiser.theta

    @property
    def low_rank(self) -> AdaptedDenoiser:
        """The denoiser of a method that trains a low-rank adapter."""
        assert isinstance(self.denoiser, AdaptedDenoiser)
        return self.denoiser

    @property
    def dense(self) -> DenseDenoiser:
        """The denoiser of a method that changes all weights."""
        assert isinstance(self.denoiser, DenseDenoiser)
        return self.denoiser

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark θ as unfinished: an exception inside leaves it so."""
        self.whole = False
        yield
        self.whole = True

    def settle(self) -> None:
        """Make θ what the run results in, after its last step."""
        if self.average is not None:
            with self.changing():
                self.dense.set(self.average.values)
                self.agree()

    def warn(self, warning: str) -> None:
        """Log a warning and keep it for the run's result."""
        log.warning(warning)
        self.warnings.append(warning)


def adapted(model: Model, plan: HardeningPlan, earlier: AnyAdapter | None = None) -> Trained:
    """Put a fresh θ of the plan on the model's denoiser. earlier: what stages before it left."""
    if problem := misfit(plan.method, model.family.title, model.family.no_cross_attention):
        raise ConfigError(problem)
    precision = decided_precision(plan, model.device)
    if FACTS[plan.method].dense:
        return DenseDenoiser(
            model,
            precision=precision,
            teacher=plan.distil.teacher,
            waits=plan.distil.teacher_waits,
            earlier=earlier,
        )
    return AdaptedDenoiser(
        model, plan.adapter, seed=plan.seed, precision=precision, earlier=earlier
    )


def set_up(
    denoiser: Trained,
    plan: HardeningPlan,
    data: EncodedData,
    *,
    warnings: list[str] | None = None,
    on_inner_step: OnInnerStep = lambda step, inner, of, names: None,
    compute: Compute = in_order,
    agree: Callable[[], None] = lambda: None,
    alone: bool = True,
    cache: Path | None = None,
    on_predicted: OnPredicted = lambda done, of: None,
) -> Setup:
    """Build the parts of a run of `plan`, which is as its method reads it.

    cache: folder for what is computed once; None keeps it in main memory.
    """
    device = denoiser.model.device
    plan = decided_on(plan, device)
    process = denoiser.model.process.to(device)
    objective = Objective(denoiser, process, plan.harm, micro_batch_of(plan))
    stored = None
    distils = FACTS[plan.method].distils
    if distils and plan.distil.stored_draws:
        assert isinstance(denoiser, DenseDenoiser)
        key = stored_key(plan, denoiser.original, data, process)
        stored = StoredPredictions(
            key, EncodingCache(cache), objective.original, denoiser.forget_original, on_predicted
        )
    feed = Feed(plan, data, objective, process, device, stored)
    regulator = Regulator(plan.regulator)
    optimiser = make_optimiser(plan, list(denoiser.theta.values()), device)
    averages = distils and plan.distil.ema
    return Setup(
        plan=plan, denoiser=denoiser, data=data, feed=feed, regulator=regulator,
        users=Users(denoiser, plan, feed, regulator, on_inner_step), optimiser=optimiser,
        warnings=[] if warnings is None else warnings, compute=compute, agree=agree, alone=alone,
        average=Average(denoiser.theta, plan.distil.ema) if averages else None,
    )  # fmt: skip


def kernels_of(setup: Setup, began: Mapping[str, Any] | None = None) -> Kernels:
    """Choose the kernels for the run. began: those that it began with, as of `Kernels.to_json`."""
    plan, model = setup.plan, setup.denoiser.model
    return choose_kernels(
        model.denoiser, plan.kernels, lambda: gradient(setup.feed.retain(1), setup.theta),
        twice=differentiates_twice(plan.solver) and bool(plan.fine_tunes),
        own=model.source is not None, bears_tf32=not needs_all_digits(plan), began=began,
    )  # fmt: skip
