"""Several pieces of work side by side, one thread each, told as one piece of progress.

PyTorch lets go of the interpreter's lock in every operation, so on two cores two small trainings
take hardly longer than one. An exception of any of them, or one raised by the callback, stops all
and comes out of `together`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from ..progress import Progress, ProgressCallback

T = TypeVar("T")


class _Stopped(BaseException):
    """Another piece has failed."""


class _Shared:
    """Adds up the steps of all pieces; callbacks come one at a time."""

    def __init__(self, stage: str, total: int, on_progress: ProgressCallback) -> None:
        self._stage, self._total, self._tell = stage, total, on_progress
        self._lock, self._steps = threading.Lock(), {}  # type: ignore[var-annotated]
        self.stopped = False

    def of(self, piece: str) -> ProgressCallback:
        def tell(progress: Progress, /) -> None:
            with self._lock:
                if self.stopped:
                    raise _Stopped
                self._steps[piece] = max(progress.step, self._steps.get(piece, 0))
                done = min(sum(self._steps.values()), self._total)
                self._tell(
                    Progress(
                        stage=self._stage, step=done, total=self._total,
                        values=progress.values, message=piece,
                    )
                )  # fmt: skip

        return tell


def together(
    stage: str,
    steps: int,
    pieces: Mapping[str, Callable[[ProgressCallback], T]],
    on_progress: ProgressCallback,
) -> dict[str, T]:
    """Run each piece in a thread of its own, single-threaded inside; their results by name.

    steps: of all pieces together, for the progress bar.
    """
    shared = _Shared(stage, steps, on_progress)

    def run(name: str) -> T:
        torch.set_num_threads(1)
        return pieces[name](shared.of(name))

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(max(1, min(len(pieces), os.cpu_count() or 1))) as pool:
            futures = {name: pool.submit(run, name) for name in pieces}
            try:
                wait(futures.values(), return_when=FIRST_EXCEPTION)
            finally:
                # After an interrupt of this thread, or an error in one piece, the rest end at
                # their next step; when all is well nothing is left to stop.
                shared.stopped = not all(future.done() for future in futures.values())
        _raise_first([future.exception() for future in futures.values()])
        return {name: future.result() for name, future in futures.items()}
    finally:
        torch.set_num_threads(threads)


def _raise_first(errors: Sequence[BaseException | None]) -> None:
    real = [error for error in errors if error is not None and not isinstance(error, _Stopped)]
    if real:
        raise real[0]
