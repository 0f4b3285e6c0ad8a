"""Runs several pieces of work in parallel, one thread each, with one common progress.

PyTorch releases the interpreter's lock in every operation, so on two cores two small trainings
take hardly longer than one. An exception in any piece, or one raised by the callback, stops all
pieces and is raised by `run_in_threads`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from ..progress import Cancelled, Combined, ProgressCallback

T = TypeVar("T")


def run_in_threads(
    stage: str,
    steps: int,
    pieces: Mapping[str, Callable[[ProgressCallback], T]],
    on_progress: ProgressCallback,
) -> dict[str, T]:
    """Run each piece in a thread of its own, single-threaded inside; return results by name.

    steps: total of the pieces, for the progress bar.
    """
    progress = Combined(on_progress, stage, steps)

    def run(name: str) -> T:
        torch.set_num_threads(1)
        return pieces[name](progress.piece(name))

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(max(1, min(len(pieces), os.cpu_count() or 1))) as pool:
            futures = {name: pool.submit(run, name) for name in pieces}
            try:
                wait(futures.values(), return_when=FIRST_EXCEPTION)
            finally:
                # After an interrupt of this thread, or an error in one piece, the others end at
                # their next step.
                if not all(future.done() for future in futures.values()):
                    progress.cancel()
        _raise_first([future.exception() for future in futures.values()])
        return {name: future.result() for name, future in futures.items()}
    finally:
        torch.set_num_threads(threads)


def _raise_first(errors: Sequence[BaseException | None]) -> None:
    real = [error for error in errors if error is not None and not isinstance(error, Cancelled)]
    if real:
        raise real[0]
