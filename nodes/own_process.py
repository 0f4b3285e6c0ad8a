"""Hardens in a process of its own, so that a crash or a full memory there leaves ComfyUI running.

The process is the backend's worker, started with ComfyUI's own Python. It loads the checkpoint
file, on the device that the node names, and writes the run folder that ComfyUI itself would write.
A run may also continue in the background: the node then returns at once, ComfyUI works on, and
queueing the workflow again waits for the run, or finds it finished.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backend.errors import ConfigError, RunError
from ..backend.worker.process import WorkerProcess, death
from .live import Live, check_interrupt

if TYPE_CHECKING:
    from ..backend.plan.hardening import HardeningPlan

INSIDE, OWN, BACKGROUND = "inside ComfyUI", "own process", "own process, in the background"
PLACES = (INSIDE, OWN, BACKGROUND)
SAME = "same as ComfyUI"
DEVICES = (SAME, "cpu", "cuda:0", "cuda:1", "cuda:2", "cuda:3", "mps")
_EVERY = 0.2  # seconds between two looks at a worker
_log = logging.getLogger("resalign")
_running: dict[Path, WorkerRun] = {}  # by run folder
_begun = 0  # runs so far, see `fingerprint`


def choice_problem(process: str | None, device: str | None) -> str:
    """Return what is wrong with the two choices when the workflow is queued; empty if nothing."""
    for name, value, known in (("process", process, PLACES), ("device", device, DEVICES)):
        if value is not None and value not in known:
            return f"{name} is {value!r}; choose from {', '.join(known)}"
    if process == INSIDE and device not in (None, SAME):
        return (
            f"ComfyUI hardens on its own device: choose '{SAME}', or an own process, which can use "
            f"{device}"
        )
    return ""


def device_for(device: str) -> str:
    """Return the device as torch names it; a ConfigError if this machine does not have it."""
    from ..backend.jobs.device import resolve_device
    from . import memory

    return memory.device_name() if device == SAME else resolve_device(device)


def checked_source(
    model: Any, clip: Any, vae: Any, source: Path | None, hidden: Any = None
) -> tuple[Path, dict[str, str]]:
    """Return the file that a worker can load in place of what is connected, and the files of the
    components that it lacks; refuse otherwise."""
    from ..backend.errors import ResAlignError
    from . import bridge
    from .sources import companions

    why, parts = "the file that the MODEL was loaded from is not known", {}
    if source is not None:
        try:
            parts = companions(model, clip, vae, source, hidden)
            why = bridge.difference_from_file(model, clip, vae, source, parts)
        except ResAlignError as error:
            why = str(error)
    if why or source is None:
        raise ConfigError(
            f"an own process loads the checkpoint's file, and what is connected is not in it "
            f"({why}): connect MODEL, CLIP and VAE of their loaders directly, or set process to "
            f"'{INSIDE}'"
        )
    return source, parts


def fingerprint(process: str) -> str:
    """Return a value that changes whenever a background run begins.

    ComfyUI would otherwise return the node's cached output, which says that it is still at work.
    """
    return str(_begun) if process == BACKGROUND else ""


def run_in_worker(
    hidden: Any,
    plan: HardeningPlan,
    folder: Path,
    about: dict[str, Any],
    options: dict[str, Any],
    *,
    background: bool,
) -> bool:
    """Take the steps that are left in a worker; return whether the run is finished.

    A run of this folder that is at work in the background is waited for, and an interrupt stops it.

    Args:
        about: the description of the MODEL, as `runs.describe_source` returns it.
        options: fields of the worker's request: `device`, `prediction`, and those of previews.
    """
    run = _running.get(folder)
    if run is None:
        _check_free(options["device"])
        run = WorkerRun(hidden, plan, folder, about, options)
        run.start()
        if background:
            run.live.show_lines(["In the background. To wait for it or cancel it: queue again."])
            return False
    run.wait()
    return True


class WorkerRun:
    """One run in a worker, followed on a thread of its own."""

    def __init__(
        self, hidden: Any, plan: HardeningPlan, folder: Path, about: dict[str, Any],
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        from ..backend.plan.file import to_json
        from .runs import saved_records

        self.folder, self.device = folder, options["device"]
        self._plan, self._about = plan, about
        self._request = {
            "job": "harden", "checkpoint": about["checkpoint"], "plan": to_json(plan),
            "run_folder": str(folder), "adopt": True, **options,
        }  # fmt: skip
        show = options["show_pictures"]
        self.live = Live(hidden, "harden", plan.outer_steps, show_pictures=show)
        self.live.plan(plan, saved_records(folder), every=options["preview_every"])
        self.live.note("starting the process")
        self.live.stay_with_page()
        self._last: dict[str, Any] = {}
        self._error: RunError | None = None
        self._process = WorkerProcess(sys.executable, on_event=self._hear, on_log=_log.info)
        self._thread = threading.Thread(target=self._follow, name="resalign run", daemon=True)

    def start(self) -> None:
        global _begun
        _begun += 1
        _running[self.folder] = self
        self._thread.start()

    def wait(self) -> None:
        """Wait for the end on the node's thread; an interrupt stops the worker, then passes on."""
        try:
            while self._thread.is_alive():
                self._thread.join(_EVERY)
                check_interrupt()
                self.live.move_bar()
        except BaseException:
            self.live.note("stopping")
            self._process.cancel()
            self._thread.join()
            raise
        if self._error is not None:
            raise self._error

    def _hear(self, event: dict[str, Any]) -> None:
        if event["event"] == "state":
            self.live.mirror(event["state"])
        elif event["event"] != "hello":
            self._last = event

    def _follow(self) -> None:
        """Run the worker to its end and show how it ended. On the run's own thread."""
        from ..backend.jobs.verdict import of_run
        from ..backend.run.sealed import write_json
        from .runs import NEXT_STEP, SOURCE, saved_harms

        try:
            code = self._process.run(self._request)
            if self._last.get("event") == "done":
                write_json(self.folder / SOURCE, self._about)
                self.live.finish(*of_run(self._plan, NEXT_STEP, saved_harms(self.folder)))
            elif self._process.cancelled:
                step, steps = self._saved(), self._plan.outer_steps
                self.live.stop(f"stopped after step {step} of {steps}; queue again to continue")
            else:
                self._fail(self._reason(code))
        except Exception as error:
            _log.exception("the worker could not be followed")
            self._fail(str(error) or type(error).__name__)
        finally:
            _running.pop(self.folder, None)

    def _reason(self, code: int) -> str:
        if "traceback" in self._last:
            _log.error("in the process of a hardening run:\n%s", self._last["traceback"])
        return self._last.get("message") or death(code, self._process.last_lines())

    def _fail(self, reason: str) -> None:
        step = self._saved()
        next_step = f"queue again to continue from step {step}" if step else "queue again to retry"
        message = f"{reason.rstrip('. ')}. ComfyUI is not affected; {next_step}."
        self._error = RunError(message)
        self.live.fail(message)

    def _saved(self) -> int:
        from .runs import saved_steps

        return saved_steps(self.folder)


def _check_free(device: str) -> None:
    """Raise if a run in the background has the device; make room on ComfyUI's own."""
    from comfy import model_management

    from . import memory

    for run in _running.values():
        if run.device == device:
            raise ConfigError(
                f"another hardening is at work on {device} in the background: queue its workflow "
                "again to wait for it or cancel it, or choose another device"
            )
    if device != "cpu" and device == memory.device_name():
        model_management.unload_all_models()
        model_management.soft_empty_cache()
