"""Runs a command on several processes: `accelerate launch -m resalign harden ...`.

The first rank reads the arguments, holds the run folder and prints; it sends the job to the
others, which follow.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import ConfigError, RankError, ResAlignError, RunError
from .console import Console
from .system import is_environment, system_error

if TYPE_CHECKING:
    from ..parallel.ranks import Ranks

SHARED = ("harden", "resume", "probe")  # the commands that ranks share; the first runs the others


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; a launcher sends it to the ranks that are left when one has died."""


def on_ranks(run: Callable[[Ranks], int], args: argparse.Namespace, console: Console) -> int:
    """Connect the ranks, run the command on the first and let the others follow it."""
    with _joined(args, console) as ranks:
        if ranks.first:
            return run(ranks)
        from ..jobs.follow import follow

        with explaining_end(ranks, str):
            follow(ranks, on_progress=console.progress)
        return 0


@contextmanager
def _joined(args: argparse.Namespace, console: Console) -> Iterator[Ranks]:
    """Connect to the ranks of this run. All but the first print nothing meanwhile."""
    from ..parallel.launch import PATIENCE, join_ranks

    patience = PATIENCE if args.rank_timeout is None else args.rank_timeout
    if patience <= 0:
        raise ConfigError(f"--rank-timeout is {patience:g}; give seconds, more than 0")
    with join_ranks(patience) as ranks:
        console.quiet = not ranks.first
        if ranks.first and ranks.count > 1:
            console.note(f"{ranks.count} processes")
        before = logging.root.manager.disable
        if not ranks.first:
            logging.disable(logging.WARNING)
        try:
            yield ranks
        finally:
            logging.disable(before)


@contextmanager
def explaining_end(ranks: Ranks, how_to_continue: Callable[[], str]) -> Iterator[None]:
    """Add how to continue to an interrupt, a lost rank, and what the system refused."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        # A launcher also stops the ranks that are left when one of them dies.
        died = ranks.died() if isinstance(interrupt, Terminated) else ""
        if died:
            raise RankError(died + how_to_continue()) from None
        raise KeyboardInterrupt("interrupted" + how_to_continue()) from None
    except RankError as error:
        error.args = (str(error) + how_to_continue(),)
        raise
    except ResAlignError as error:
        if isinstance(error.__cause__, OSError):
            error.args = (str(error) + how_to_continue(),)
        raise
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not is_environment(error):
            raise
        raise RunError(system_error(error) + how_to_continue()) from error


def reports_end(console: Console, error: BaseException) -> bool:
    """Return whether this rank prints how the command ended: the first, or any if it is gone."""
    return not console.quiet or (isinstance(error, RankError) and error.first_is_gone)


def stop_on_signals(several: bool) -> Callable[[], None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does; return what restores the handlers.

    several: ranks often receive both signals, one after the other; all but the first are ignored
    then, as they would interrupt the saving of the state.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def stop(number: int, _: object) -> None:
        if several:
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows; `nohup` has it ignored
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        before[hang_up] = signal.signal(hang_up, stop)
    if several:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
