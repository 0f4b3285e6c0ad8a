"""A command that several processes run together: `accelerate launch -m resalign harden ...`.

The first rank reads the arguments, keeps the run folder and talks; it sends the job to the
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

from ..errors import ConfigError, RankError
from .console import Console

if TYPE_CHECKING:
    from ..parallel.ranks import Ranks

TOGETHER = ("harden", "resume", "probe")  # the commands that ranks share; the first does the others


class Terminated(KeyboardInterrupt):
    """SIGTERM: a launcher sends it to the ranks that are left when one of them has died."""


@contextmanager
def joined(args: argparse.Namespace, console: Console) -> Iterator[Ranks]:
    """The ranks of this run, met; alone at once. All but the first are silent meanwhile."""
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


def follow(ranks: Ranks, console: Console) -> int:
    """Another rank than the first: do what the first one's job asks."""
    from ..plan.file import from_json
    from ..plan.job import Job
    from ..plan.probe import ProbeJob

    work: tuple[str, dict] | None = ranks.share(None)
    if work is None:
        return 0
    kind, job = work
    if kind == "probe":
        from ..jobs.probe import measure

        with telling(ranks, str):
            measure(from_json(ProbeJob, job), on_progress=console.progress, ranks=ranks)
    else:
        from .hardening import to_the_end

        to_the_end(from_json(Job, job), None, console, ranks)
    return 0


@contextmanager
def telling(ranks: Ranks, how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """An interrupt or a lost rank says so, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        # Who starts the ranks also stops those that are left when one of them dies.
        died = ranks.died() if isinstance(interrupt, Terminated) else ""
        if died:
            raise RankError(died + how_to_go_on()) from None
        raise KeyboardInterrupt("interrupted" + how_to_go_on()) from None
    except RankError as error:
        error.args = (str(error) + how_to_go_on(),)
        raise


def talks(console: Console, error: BaseException) -> bool:
    """Whether this rank is to say how the command ended: the first, or any when that is gone."""
    return not console.quiet or (isinstance(error, RankError) and error.first_is_gone)


def stop_on_signals(several: bool) -> Callable[[], None]:
    """Let SIGTERM end a run as Ctrl-C does. Returns what undoes it.

    several: ranks often get both, one after the other; all but the first are ignored then, as
    they would interrupt the saving of the state.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def stop(number: int, _: object) -> None:
        if several:
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if several:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
