"""What goes between a host and its worker. The standard library alone: hosts import this too.

Host to worker, on stdin: the request as one line of JSON, later a line `cancel`. The end of stdin
means the same, so a worker never outlives its host. Worker to host, on stdout: one line per event,
`@resalign {"event": ...}`. Whatever else either stream holds is text for the log.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

PREFIX = "@resalign "
PROTOCOL = 1  # raised when a host that knows the last one would go wrong
CANCEL = "cancel"
# Exit codes.
DONE, BUG, USER, MEMORY, STOPPED = 0, 1, 2, 3, 130
LINGER = 120.0  # seconds that a worker without a host may take for a step that cannot be stopped


class Stopped(BaseException):
    """The host has asked for an end, or is gone. No `Exception`: nothing may swallow it."""


def parse(line: str) -> dict[str, Any] | None:
    """The event that a line of output holds, or None where it is text for the log."""
    if not line.startswith(PREFIX):
        return None
    try:
        event = json.loads(line[len(PREFIX) :])
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


class Lines:
    """stdin line by line, without Python's buffer: its lock, held by a thread that waits for a
    line when the process ends, aborts the interpreter."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor, self._rest = descriptor, b""

    def __call__(self) -> bytes:
        """The next line with its end; b"" at the end of stdin."""
        while b"\n" not in self._rest:
            more = os.read(self._descriptor, 1 << 16)
            if not more:
                line, self._rest = self._rest, b""
                return line
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line + b"\n"


class Channel:
    """The worker's way out. Whatever any library prints goes to stderr from now on, so that no
    half line of theirs ever runs into an event."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._shown: list[str] | None = None
        self.broken = False

    def send(self, event: str, **fields: Any) -> None:
        """Raises `Stopped` where nobody listens any more."""
        data = (PREFIX + json.dumps({"event": event, **fields}, allow_nan=False) + "\n").encode()
        with self._lock:
            try:
                while data and not self.broken:
                    data = data[os.write(self._out, data) :]
            except OSError:  # the host is gone; nothing that a library prints may fail for it
                self.broken = True
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)
                os.dup2(nowhere, 2)
                raise Stopped from None

    def state(self, state: dict[str, Any]) -> None:
        """The state of the work; its pictures only where they have changed, as they are long."""
        shown = [picture["url"] for picture in state["pictures"]]
        if shown == self._shown:
            state = {name: value for name, value in state.items() if name != "pictures"}
        self._shown = shown
        self.send("state", state=state)


def watching(live: Callable[[Any], None], check: Callable[[], None]) -> Callable[[Any], None]:
    """The progress callback of every job: ask whether to stop, then tell."""

    def tell(progress: Any, /) -> None:
        check()
        live(progress)

    return tell


class StopFlag:
    """Set by `cancel`, by the end of stdin, or by a signal; `check` raises then."""

    def __init__(self) -> None:
        self._set = threading.Event()

    def set(self) -> None:
        self._set.set()

    def check(self) -> None:
        if self._set.is_set():
            raise Stopped

    def watch(self, read_line: Callable[[], bytes], *, linger: float = LINGER) -> None:
        """Read stdin on a thread of its own until it says to stop."""

        def listen() -> None:
            while (line := read_line()) and line.decode("utf-8", "replace").strip() != CANCEL:
                pass
            self._set.set()
            while line:  # cancelled; the host may still go away before the step is over
                line = read_line()
            threading.Event().wait(linger)
            os._exit(STOPPED)  # all that is kept on disk is whole at every moment

        threading.Thread(target=listen, name="stdin", daemon=True).start()
