"""Messages between a host and its worker. Standard library only, as hosts import this too.

Host to worker, on stdin: the request as one line of JSON, later a line `cancel`. The end of stdin
also cancels, so a worker never outlives its host. Worker to host, on stdout: one line per event,
`@resalign {"event": ...}`. Anything else on either stream is text for the log.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

PREFIX = "@resalign "
PROTOCOL = 1  # incremented when a host of the previous version would fail
CANCEL = "cancel"
# Exit codes.
DONE, BUG, USER, MEMORY, STOPPED = 0, 1, 2, 3, 130
LONGEST = 16 << 20  # bytes of a line of stdin; of a longer one the beginning is kept
LINGER = 120.0  # seconds after which a worker without a host exits in the middle of a step


class Stopped(BaseException):
    """The host has cancelled or is gone. Not an `Exception`, so that nothing swallows it."""


def parse(line: str) -> dict[str, Any] | None:
    """Return the event on a line of output; None if the line is text for the log."""
    if not line.startswith(PREFIX):
        return None
    try:
        event = json.loads(line[len(PREFIX) :])
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


class Lines:
    """Reads stdin line by line, without Python's buffer.

    A thread that waits for a line holds the buffer's lock, which aborts the interpreter at exit.
    """

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor, self._rest = descriptor, bytearray()

    def __call__(self) -> bytes:
        """Return the next line with its line break; b"" at the end of stdin.

        Of a line longer than `LONGEST` bytes one more than that is returned.
        """
        line = bytearray()
        while (end := self._rest.find(b"\n")) < 0:
            line += self._rest[: LONGEST + 1 - len(line)]
            more = os.read(self._descriptor, 1 << 16)
            if not more:
                self._rest.clear()
                return bytes(line)
            self._rest[:] = more
        line += self._rest[: min(end, LONGEST + 1 - len(line))]
        del self._rest[: end + 1]
        return bytes(line) + b"\n"


class Channel:
    """Sends events on stdout; what libraries print goes to stderr, so that events stay whole."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._shown: list[str] | None = None
        self.broken = False

    def send(self, event: str, **fields: Any) -> None:
        """Send an event; raise `Stopped` if the host is gone."""
        data = (PREFIX + json.dumps({"event": event, **fields}, allow_nan=False) + "\n").encode()
        with self._lock:
            try:
                while data and not self.broken:
                    data = data[os.write(self._out, data) :]
            except OSError:  # the host is gone; what a library prints must not fail because of it
                self.broken = True
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)
                os.dup2(nowhere, 2)
                raise Stopped from None

    def state(self, state: dict[str, Any]) -> None:
        """Send the state of the work; its long pictures only when they have changed."""
        shown = [picture["url"] for picture in state["pictures"]]
        if shown == self._shown:
            state = {name: value for name, value in state.items() if name != "pictures"}
        self._shown = shown
        self.send("state", state=state)


class StopFlag:
    """Set by `cancel` or by the end of stdin; `check` then raises."""

    def __init__(self) -> None:
        self._set = threading.Event()

    def set(self) -> None:
        self._set.set()

    def check(self) -> None:
        if self._set.is_set():
            raise Stopped

    def watch(self, read_line: Callable[[], bytes], *, linger: float = LINGER) -> None:
        """Read stdin on a thread of its own until it cancels."""

        def listen() -> None:
            while (line := read_line()) and line.decode("utf-8", "replace").strip() != CANCEL:
                pass
            self._set.set()
            while line:  # cancelled; the host may still end before the step does
                line = read_line()
            threading.Event().wait(linger)
            os._exit(STOPPED)  # files on disk are complete at every moment

        threading.Thread(target=listen, name="stdin", daemon=True).start()
