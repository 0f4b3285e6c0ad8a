"""Turns work that reports lines to a callback into an iterator of lines."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


def lines_of(work: Callable[[Callable[[str], None]], Any]) -> Iterator[str]:
    """Run `work(on_line)` on a thread and yield its lines; an error of it is raised here."""
    lines: queue.Queue[str | BaseException | None] = queue.Queue()

    def run() -> None:
        try:
            work(lines.put)
        except BaseException as error:  # raised by the iterator
            lines.put(error)
        else:
            lines.put(None)

    threading.Thread(target=run, daemon=True).start()
    while (line := lines.get()) is not None:
        if isinstance(line, BaseException):
            raise line
        yield line
