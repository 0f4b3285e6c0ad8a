"""Turns work that reports lines to a callback into an iterator of lines."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

BEAT = 2.0


def lines_of(work: Callable[[Callable[[str], None]], Any]) -> Iterator[str]:
    """Run `work(on_line)` on a thread and yield its lines; an error of it is raised here.

    An empty line stands for `BEAT` seconds without one: A1111's gradio gives up an event that
    yields nothing for 5 seconds where another extension has brought a newer httpx.
    """
    lines: queue.Queue[str | BaseException | None] = queue.Queue()

    def run() -> None:
        try:
            work(lines.put)
        except BaseException as error:  # raised by the iterator
            lines.put(error)
        else:
            lines.put(None)

    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=BEAT)
        except queue.Empty:
            line = ""
        if line is None:
            return
        if isinstance(line, BaseException):
            raise line
        yield line
