"""Starts a worker process, listens to it and stops it; runs in the host's process.

Imports only the standard library and parts of the backend that do not import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..errors import ResAlignError
from .protocol import CANCEL, parse

WORKER = Path(__file__).resolve().with_name("__main__.py")
GRACE = 60.0  # seconds from a cancel to SIGTERM: a step on a slow device, or the loading of a file
LAST_GRACE = 15.0  # from there to SIGKILL
_CANCEL = CANCEL.encode() + b"\n"
_WARNING = re.compile(r"warning|deprecated|token indices|set_verbosity", re.IGNORECASE)
_LINES = 8  # last lines of stderr that are quoted when a worker dies
_KEEP_OUT = ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME")


class WorkerProcess:
    """A worker process for one job. `run` blocks until it ends; any thread may call `cancel`."""

    def __init__(
        self,
        python: str,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_log: Callable[[str], None],
    ) -> None:
        self._command = [python_path(python), "-I", "-u", str(WORKER)]
        self._on_event, self._on_log = on_event, on_log
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # of stdin, and of what cancels
        self._cancelled = self._asked = False  # asked: the request has gone out
        self._timer: threading.Timer | None = None
        self._last_lines: deque[str] = deque(maxlen=_LINES)

    def run(self, request: dict[str, Any]) -> int:
        """Start it, send the request and pass on its output until it exits.

        Returns its exit code; negative is the number of the signal that killed it.
        """
        try:
            process = self._start()
        except OSError as error:
            raise ResAlignError(
                f"the worker's Python {self._command[0]} does not start ({error}): build the "
                "worker's environment again"
            ) from None
        assert process.stdin and process.stdout and process.stderr
        logging = threading.Thread(target=self._log, args=(process.stderr,), daemon=True)
        logging.start()
        try:
            self._ask(request)
            for line in process.stdout:
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                event = parse(text)
                if event is not None:
                    self._on_event(event)
                elif text:
                    self._on_log(text)
            code = process.wait()
        finally:  # also where a callback of ours fails: no worker is left behind
            self._end(process)
        logging.join(timeout=5)
        process.stdout.close()
        process.stderr.close()
        return code

    def cancel(self, *, grace: float = GRACE, last_grace: float = LAST_GRACE) -> None:
        """Ask it to stop, kill it if it does not, and return at once.

        A later call replaces the seconds. A worker that is not started yet is stopped when it is.
        """
        self._arm(grace, self._terminate, last_grace)
        with self._lock:
            first, self._cancelled = not self._cancelled, True
            if first and self._asked:
                self._write(_CANCEL)

    def kill(self) -> None:
        """Kill it and every process it has started, such as a scorer's command."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        if os.name == "nt":
            process.kill()
        else:  # it leads a process group; its number is not reused while it is not waited for
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def last_lines(self) -> str:
        """Return the last lines it wrote to stderr, without what libraries warn of."""
        return "\n".join(line for line in self._last_lines if not _WARNING.search(line))

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if k not in _KEEP_OUT}
        with self._lock:
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, env=environment,
                start_new_session=os.name != "nt",  # a Ctrl-C in the host's terminal is the host's
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )  # fmt: skip
            self._process = process
        return process

    def _ask(self, request: dict[str, Any]) -> None:
        with self._lock:
            cancelled, self._asked = self._cancelled, True
            self._write(json.dumps(request).encode() + b"\n" + (_CANCEL if cancelled else b""))
        if cancelled:
            self._arm(GRACE, self._terminate, LAST_GRACE)

    def _write(self, data: bytes) -> None:
        """Call with the lock held."""
        stdin = self._process.stdin if self._process else None
        if stdin is None or stdin.closed:
            return
        with contextlib.suppress(OSError):  # it has died, which `run` is about to notice
            stdin.write(data)
            stdin.flush()

    def _log(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._last_lines.append(text)
                self._on_log(text)

    def _arm(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, act, arguments)
        self._timer.daemon = True
        self._timer.start()

    def _terminate(self, last_grace: float) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._arm(last_grace, self.kill)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            self.kill()
            process.wait()
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            if process.stdin and not process.stdin.closed:
                with contextlib.suppress(OSError):  # unsent bytes for a dead process
                    process.stdin.close()


def python_path(python: str) -> str:
    """Return the interpreter to start; raise a ResAlignError if there is none."""
    found = shutil.which(python) if python else None
    if found is None:
        raise ResAlignError(
            f"the worker's Python {python or '(none)'} does not exist: build the worker's "
            "environment again"
        )
    return found


def death(code: int, lines: str) -> str:
    """Describe the end of a worker that did not say why it ended."""
    how = f"ended with exit code {code}"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        how = f"was killed ({name})"
        if name == "SIGKILL":
            how += ", by a user or by the system because memory ran out"
    return f"the worker {how}; its last output: {lines or '(none)'}"
