"""Lines from a piece of work that takes a callback, as they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


def lines_of(work: Callable[[Callable[[str], None]], Any]) -> Iterator[str]:
    """Run `work(on_line)` on a thread of its own; its error, if any, is raised here."""
    lines: queue.Queue[str | BaseException | None] = queue.Queue()

    def run() -> None:
        try:
            work(lines.put)
        except BaseException as error:  # handed over, and raised where it is looked at
            lines.put(error)
        else:
            lines.put(None)

    threading.Thread(target=run, daemon=True).start()
    while (line := lines.get()) is not None:
        if isinstance(line, BaseException):
            raise line
        yield line
