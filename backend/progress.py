"""Reports from long-running work, and the way its caller stops it.

A callback can be wrapped: the functions below take one and return another. Every wrapper of the
package is one of them, so that there is one place to look at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture worth showing: its file, its prompt, and whether a scorer flagged it.

    Blur flagged pictures until the user asks for them.
    """

    file: str
    caption: str
    flagged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One moment of a long piece of work.

    `step` counts whole units of `stage` from 1 to `total` (0 before the first is done);
    `micro_step` of `micro_total` counts the parts of the current unit. `values` are figures
    worth showing (`harm`, `harm_after`, `retain`, `residual`, ...), `message` one short line.
    A probe adds a point of its curves whenever it has one: `labels` identify the curve (`model`,
    `attack`, `seed`, `at`), `values` hold the rates, `pictures` what was generated. `share` of the
    whole work that is done, from 0 to 1, where units differ in cost; None: count units. `left`:
    seconds that the whole work still takes, where it knows. `at_once`: units that are at work
    together, all of which a micro-step brings further; 0 where it is one.
    """

    stage: str
    step: int
    total: int
    micro_step: int = 0
    micro_total: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    share: float | None = None
    left: float | None = None
    at_once: int = 0


class ProgressCallback(Protocol):
    """Called after each step and micro-step, on the thread that runs the recipe.

    Raise from it to stop the run: the exception passes through the backend untouched (ComfyUI's
    interrupt included, which is not an `Exception`), and no half-written file stays.
    """

    def __call__(self, progress: Progress, /) -> None: ...


def silent(progress: Progress, /) -> None:
    """Ignore the progress."""


def with_check(on_progress: ProgressCallback, check: Callable[[], object]) -> ProgressCallback:
    """Call `check`, which raises where the work is to stop, before each report."""

    def report(progress: Progress, /) -> None:
        check()
        on_progress(progress)

    return report


def with_message(on_progress: ProgressCallback, message: str) -> ProgressCallback:
    """Add `message` to reports that have none of their own."""

    def report(progress: Progress, /) -> None:
        on_progress(replace(progress, message=progress.message or message))

    return report


def rename_stage(on_progress: ProgressCallback, old: str, new: str) -> ProgressCallback:
    """Report the stage `old` under the name `new`; other stages keep theirs."""

    def report(progress: Progress, /) -> None:
        on_progress(replace(progress, stage=new) if progress.stage == old else progress)

    return report


def as_part(
    on_progress: ProgressCallback, stage: str, start: int, total: int, *, message: str = ""
) -> ProgressCallback:
    """Report the micro-steps of work on some units of `stage`, after `start` of `total` are done.

    Units that are complete are reported by the caller, once it has kept them.
    """

    def report(progress: Progress, /) -> None:
        if progress.micro_total:
            step, said = start + progress.step, message or progress.message
            on_progress(replace(progress, stage=stage, step=step, total=total, message=said))

    return report


def chain(*callbacks: ProgressCallback) -> ProgressCallback:
    """Report to several callbacks, in order."""

    def report(progress: Progress, /) -> None:
        for callback in callbacks:
            callback(progress)

    return report


class Whole:
    """Reports several passes, each of which counts from the start, as one piece of work.

    Adds `share`, which never falls. total: steps of all passes. A pass has begun where the stage is
    another or the step is less than before.
    """

    def __init__(self, on_progress: ProgressCallback, total: int) -> None:
        self._on_progress, self._total = on_progress, max(1, total)
        self._past, self._last = 0, ("", 0)

    def __call__(self, progress: Progress, /) -> None:
        stage, step = self._last
        if stage and (progress.stage != stage or progress.step < step):
            self._past += step
        self._last = (progress.stage, progress.step)
        share = min(1.0, (self._past + progress.step) / self._total)
        self._on_progress(replace(progress, share=share))


class Cancelled(BaseException):
    """Raised in a piece of parallel work after another piece has failed."""


class Combined:
    """Reports several pieces of work, each on a thread of its own, as one stage.

    The step is the sum of the pieces' steps. The wrapped callback is called by one thread at a
    time. After `cancel`, every piece ends at its next report with `Cancelled`.
    """

    def __init__(self, on_progress: ProgressCallback, stage: str, total: int) -> None:
        self._on_progress, self._stage, self._total = on_progress, stage, total
        self._lock = threading.Lock()
        self._steps: dict[str, int] = {}
        self._cancelled = False

    def piece(self, name: str) -> ProgressCallback:
        """Return the callback of one piece; its name is the message of its reports."""

        def report(progress: Progress, /) -> None:
            with self._lock:
                if self._cancelled:
                    raise Cancelled
                self._steps[name] = max(progress.step, self._steps.get(name, 0))
                step = min(sum(self._steps.values()), self._total)
                self._on_progress(
                    Progress(
                        stage=self._stage, step=step, total=self._total,
                        values=progress.values, message=name,
                    )
                )  # fmt: skip

        return report

    def cancel(self) -> None:
        self._cancelled = True
