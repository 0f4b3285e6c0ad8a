"""Runs one job at a time for a host: starts, watches, stops and remembers it.

The job runs in a worker process, while a thread here holds the host's queue. Everything to show is
one dict (`state`), which survives a closed tab, a reloaded page, Reload UI and a restart of the
host. Imports only the standard library and parts of the backend that do not import torch.
"""

from __future__ import annotations

import atexit
import copy
import json
import os
import threading
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from ...backend.errors import ResAlignError
from ...backend.worker.process import WorkerProcess, death, python_path
from ...backend.worker.requests import check_files, parse_request
from . import pace
from .runs import saved_steps

RESUMED = ("harden", "resume", "probe")  # jobs that keep what is done when they are stopped

LAST_JOB = "last_job.json"
# Jobs that do not use the GPU: the host keeps its model and its queue.
BESIDE_THE_HOST = ("check", "audit", "pack")
_LOG_LINES = 200
_KEPT_EVERY = 5.0  # seconds between two writes of a running job's state
_CLOSING = (10.0, 5.0)  # seconds to SIGTERM and from there to SIGKILL when the host ends


class BusyError(ResAlignError):
    """A job is running; one at a time."""


class Host(Protocol):
    """Interface that jobs need from A1111, Forge, or the tab without a host."""

    def worker_python(self) -> str | Path:
        """Return the path of the interpreter; a ResAlignError says what to do if there is none."""
        ...

    def exclusive(self) -> AbstractContextManager[object]:
        """Wait for the host's queue and free its memory; give both back at the end.

        Entered on the job's thread.
        """
        ...


class JobManager:
    """The jobs of one host. All methods may be called from any thread."""

    def __init__(self, host: Host, folder: Path | str) -> None:
        self._host, self._folder = host, Path(folder)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process: WorkerProcess | None = None
        self._cancelled = self._closed = self._outlived = False
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._kept = 0.0
        self._began = time.monotonic()
        self._state = self._recall()
        atexit.register(self.close)

    def start(self, request: dict[str, Any]) -> None:
        """Start a job and return at once.

        Raises:
            BusyError: a job is running. ResAlignError: the request is invalid, or there is no
            worker; nothing has been started then.
        """
        check_files(parse_request(request))
        python = python_path(str(self._host.worker_python()))
        with self._changed:
            if self._closed:
                raise ResAlignError("the host is shutting down: start the job again afterwards")
            if self._thread is not None:
                running = (self._state or {}).get("job")
                raise BusyError(f"a job ({running}) is running: wait for it, or cancel it")
            job = request["job"]
            self._cancelled, self._process = False, None
            self._log.clear()
            self._began = time.monotonic()
            self._state = {
                "kind": job, "status": "running", "stage": "", "step": 0, "total": 1,
                "micro_step": 0, "micro_total": 0, "message": "waiting for the host",
                "seconds": 0.0, "left": None, "curves": {}, "pictures": [], "job": job,
                "request": {name: value for name, value in request.items() if name != "plan"},
                "result": None, "error": None, "revision": self._revision(),
            }  # fmt: skip
            thread = threading.Thread(
                target=self._run, args=(python, copy.deepcopy(request)), name="resalign job",
                daemon=True,
            )  # fmt: skip
            thread.start()  # it waits for this lock before it changes anything
            self._thread = thread
            self._publish()

    def cancel(self) -> None:
        """Ask the running job to stop and return at once; may be called again."""
        with self._changed:
            process = self._ask_to_stop()
        if process is not None:
            process.cancel()

    def state(self) -> dict[str, Any] | None:
        """Return a copy of the most recent job's state; None if there was none.

        The seconds of a running job are those since its start, whenever its worker last reported.
        """
        with self._changed:
            if self._state is None:
                return None
            return {**copy.deepcopy(self._state), **self._seconds(), "log": list(self._log)}

    def wait(self, after: int, timeout: float) -> dict[str, Any] | None:
        """Wait until the revision differs from `after`; return the state, or None on timeout."""
        with self._changed:
            new = self._changed.wait_for(
                lambda: self._state is not None and self._state["revision"] != after, timeout
            )
        return self.state() if new else None

    def close(self) -> None:
        """Stop the job and its worker, and wait for both; for Reload UI and shutdown."""
        with self._changed:
            self._closed = True
            thread, process = self._thread, self._ask_to_stop()
        if process is not None:
            process.cancel(grace=_CLOSING[0], last_grace=_CLOSING[1])
        if thread is not None and thread is not threading.current_thread():
            # Without a process it waits for the host's queue, and stops when its turn comes.
            thread.join(sum(_CLOSING) + 5 if process is not None else 1.0)
        with self._changed:
            self._outlived = self._thread is not None
        atexit.unregister(self.close)

    # --- on the job's thread -------------------------------------------------------------------

    def _run(self, python: str, request: dict[str, Any]) -> None:
        """Run a job to its end. Whatever happens, the final state says so."""
        end: dict[str, Any] = {}
        try:
            beside = request["job"] in BESIDE_THE_HOST
            alone = nullcontext() if beside else self._host.exclusive()
            with alone:
                end = self._work(python, request)
        except Exception as error:
            if end:  # the job has ended; what the host did afterwards failed
                said = end.get("message") or (self._state or {}).get("message")
                end["message"] = f"{said}; then the host failed: {error}"
                end.setdefault("error", {"kind": "bug", "message": str(error)})
            else:
                kind = "user" if isinstance(error, ResAlignError) else "bug"
                text = str(error) if kind == "user" else f"{type(error).__name__}: {error}"
                end = _failure(kind, text)
            self._note(f"{type(error).__name__}: {error}")
        finally:
            with self._changed:
                assert self._state is not None
                self._state.update(self._seconds())
                self._state.update(end or _failure("bug", "the job ended without a result"))
                self._state.update(left=None, micro_step=0, micro_total=0)
                self._thread = self._process = None
                self._keep_pace(self._state)
                self._publish()

    def _work(self, python: str, request: dict[str, Any]) -> dict[str, Any]:
        """Run the worker; return how it ended, for the state."""
        last: dict[str, Any] = {}

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "state":
                self._update(event["state"])
            elif event["event"] == "hello":
                self._note(f"worker: torch {event['torch']} on {event['device']}")
            else:
                last.update(event)

        process = WorkerProcess(python, on_event=on_event, on_log=self._note)
        with self._changed:
            if self._cancelled:
                return {"status": "stopped", "message": "stopped before it began"}
            self._process = process
            assert self._state is not None
            self._state["message"] = "starting the worker"
            self._publish()
        code = process.run(request)
        if last.get("event") == "done":
            return {"status": "done", "result": last["result"]}
        if last.get("event") == "failed":
            return _failure(last["kind"], last["message"], last.get("traceback"))
        if last.get("event") == "stopped" or process.cancelled:
            said = (
                last.get("message") or "stopped; what was saved is kept, Resume continues from it"
            )
            return {"status": "stopped", "message": said}
        return _failure("lost", death(code, process.last_lines()) + self._next_step(request))

    def _next_step(self, request: dict[str, Any]) -> str:
        """Return what to do after a worker has died."""
        if request["job"] not in RESUMED:
            return ". Start the job again"
        step = saved_steps(Path(str(request.get("run_folder") or "")))
        return ". Resume continues " + (f"from step {step}" if step else "from what was saved")

    def _update(self, state: dict[str, Any]) -> None:
        """Store a state from the worker. Its end is reported once the host has its queue back."""
        with self._changed:
            assert self._state is not None
            ended = state["status"] != "running"
            line = self._stopping() if self._cancelled else "finishing"
            status = {"status": "running", "line": line} if ended else {}
            self._state.update({**state, **status})
            self._publish()

    def _seconds(self) -> dict[str, float]:
        """Return the seconds since the start of a running job; nothing of one that has ended."""
        running = self._state is not None and self._state["status"] == "running"
        return {"seconds": round(time.monotonic() - self._began, 1)} if running else {}

    def _stopping(self) -> str:
        kept = self._state is not None and self._state["kind"] in RESUMED
        return "stopping; what is done is kept" if kept else "stopping"

    def _note(self, line: str) -> None:
        with self._changed:
            self._log.append(line)
            self._publish()

    def _ask_to_stop(self) -> WorkerProcess | None:
        """Call with the lock held."""
        if self._thread is None:
            return None
        self._cancelled = True
        if self._state is not None and self._state["message"] != "stopping":
            self._state["message"] = "stopping"
            self._publish()
        return self._process

    # --- stored ----------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Call with the lock held, after every change."""
        assert self._state is not None
        self._state["revision"] += 1
        now = time.monotonic()
        if self._state["status"] != "running" or now - self._kept >= _KEPT_EVERY:
            self._kept = now
            self._store()
        self._changed.notify_all()

    def _revision(self) -> int:
        """Return the revision; it increases over all jobs, so that a page sees the next one."""
        return self._state["revision"] if self._state else 0

    def _keep_pace(self, state: dict[str, Any]) -> None:
        """Keep how fast a hardening or probe was, for the durations that the forms give."""
        try:
            pace.remember(self._folder, state)
            if state.get("job") == "probe":
                from . import probe_times  # which needs NumPy

                probe_times.remember(self._folder, state)
        except OSError as error:  # as in `_store`
            self._log.append(f"{self._folder / pace.PACE} cannot be written: {error}")

    def _store(self) -> None:
        """Write the state to disk, without pictures, as unblurred ones must not be kept."""
        assert self._state is not None
        if self._outlived:
            return  # the file belongs to another manager by now
        state = {**self._state, "pictures": [], "log": list(self._log)}
        if isinstance(state["result"], dict) and "pictures" in state["result"]:
            state["result"] = {**state["result"], "pictures": []}
        path = self._folder / LAST_JOB
        temporary = path.with_name(path.name + ".tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(state), encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:  # a full disk must not end a job; the log says so
            self._log.append(f"{path} cannot be written: {error}")

    def _recall(self) -> dict[str, Any] | None:
        """Read the last job of an earlier process; one that was running was interrupted."""
        try:
            state = json.loads((self._folder / LAST_JOB).read_text(encoding="utf-8"))
            self._log.extend(state.pop("log"))
            state["revision"] += 1
            if state["status"] == "running":
                state.update(
                    status="stopped", left=None, micro_step=0, micro_total=0,
                    message="the host ended while this was running; start it again, or Resume, "
                    "to continue",
                )  # fmt: skip
                self._keep_pace(state)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._log.append(f"{self._folder / LAST_JOB} cannot be read: {error}")
            return None
        return state


def _failure(kind: str, message: str, traceback: str | None = None) -> dict[str, Any]:
    error = {"kind": kind, "message": message, **({"traceback": traceback} if traceback else {})}
    return {"status": "failed", "message": message, "error": error}
