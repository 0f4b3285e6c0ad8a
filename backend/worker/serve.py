"""The worker's process: reads one request, sends events, returns an exit code.

The order matters: the request is read and checked before torch is imported, so that a mistake is
answered in a tenth of a second, and only a worker that has torch and a device sends `hello`.
"""

from __future__ import annotations

import errno
import logging
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ResAlignError, RunError
from ..jobs.device import DeviceMemoryError, resolve_device
from ..jobs.live_state import LiveState
from ..text import json_text
from .protocol import (
    BUG,
    DONE,
    LONGEST,
    MEMORY,
    PROTOCOL,
    STOPPED,
    USER,
    Channel,
    Lines,
    StopFlag,
    Stopped,
)
from .requests import Request, ResumeRequest, check_files, job_of, parse_request

_NEEDED = {  # packages that an environment may lack, by their import names
    "torch", "diffusers", "transformers", "peft", "safetensors", "accelerate", "numpy", "scipy",
    "PIL", "matplotlib", "tqdm", "filelock", "tomli",
}  # fmt: skip
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


def main() -> int:
    """Serve one request from stdin; protocol.py describes the messages."""
    channel, stop = Channel(), StopFlag()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    lines = Lines()
    line = lines()
    stop.watch(lines)
    live: list[LiveState] = []
    with _signals():
        try:
            return _serve(line, channel, stop, live)
        except (Stopped, KeyboardInterrupt) as end:
            return _stopped(channel, live, str(end) or "stopped")
        except Exception as error:
            try:
                return _failed(channel, live, error)
            except Stopped:
                return STOPPED


def _serve(line: bytes, channel: Channel, stop: StopFlag, live: list[LiveState]) -> int:
    from ... import __version__

    request = read_request(line)
    stop.check()
    import torch

    device = resolve_device(_device_of(request))
    channel.send(
        "hello", version=__version__, protocol=PROTOCOL, python=platform.python_version(),
        torch=torch.__version__, device=device,
    )  # fmt: skip
    shows = bool(getattr(request, "show_pictures", False))
    live.append(LiveState(job_of(request), show_pictures=shows, on_change=channel.state))
    live[0].note("starting")
    result, message = _work(request, device)(request, live[0], stop.check)
    live[0].end("done", message)
    channel.send("done", result=result)
    return DONE


def read_request(line: bytes) -> Request:
    """Parse a line of stdin and check the request as far as possible without torch."""
    if not line.strip():
        raise ConfigError("request: stdin ended before one came; give it as one line of JSON")
    if len(line) > LONGEST:
        raise ConfigError(f"request: the line is longer than {LONGEST >> 20} MiB")
    try:
        data = json_text.loads(line)
    except json_text.JsonError as error:
        raise ConfigError(f"request: the first line of stdin is not valid JSON: {error}") from None
    request = parse_request(data)
    check_files(request)
    return request


def _device_of(request: Request) -> str:
    """Return the requested device; a resumed run otherwise uses the one it began on."""
    if isinstance(request, ResumeRequest) and not request.device:
        file = Path(request.run_folder) / "job.json"
        try:
            kept = json_text.read(file) if file.is_file() else {}
        except (OSError, json_text.JsonError) as error:
            raise RunError(f"{file} is damaged: {error}") from None
        return str((kept.get("device") if isinstance(kept, dict) else "") or "auto")
    return getattr(request, "device", "cpu")


Work = Callable[[Any, LiveState, Callable[[], None]], "tuple[dict[str, Any], str]"]


_JOBS = {  # job: (module, function, whether it uses the device)
    "check": ("checking", "check", True),
    "harden": ("hardening", "harden", True),
    "resume": ("resuming", "resume", True),
    "probe": ("probing", "probe", True),
    "try_lora": ("trying", "try_lora", True),
    "export": ("exporting", "export", False),
    "lora": ("exporting", "lora", False),
    "audit": ("reporting", "audit", False),
    "pack": ("reporting", "pack", False),
}


def _work(request: Request, device: str) -> Work:
    """Return the function of the job.

    It takes the request, the live state and the check for a stop, and returns the result and one
    line for the user.
    """
    module, name, uses_device = _JOBS[job_of(request)]
    function = getattr(import_module(f".{module}", __package__), name)
    return partial(function, device=device) if uses_device else function


def _stopped(channel: Channel, live: list[LiveState], message: str) -> int:
    try:
        for state in live:
            state.end("stopped", message)
        channel.send("stopped", message=message)
    except Stopped:
        pass  # the host is gone
    return STOPPED


def _failed(channel: Channel, live: list[LiveState], error: Exception) -> int:
    kind, message = judge(error)
    more = {}
    if kind == "bug":
        more["traceback"] = "".join(traceback.format_exception(error))
        sys.stderr.write(more["traceback"])
    for state in live:
        state.end("failed", message)
    channel.send("failed", kind=kind, message=message, **more)
    return {"user": USER, "memory": MEMORY, "bug": BUG}[kind]


def judge(error: Exception) -> tuple[str, str]:
    """Return (`user`, `memory` or `bug`, message for the user)."""
    text = str(error)
    if isinstance(error, DeviceMemoryError):
        return "memory", text
    if isinstance(error, ResAlignError):
        return "user", text
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _NEEDED:
        return "user", (
            f"{error.name} is missing in {sys.executable}: build the worker's environment again"
        )
    if _is_out_of_memory(error, text):
        return "memory", text.splitlines()[0] if text else "the memory is full"
    if getattr(error, "errno", None) in _FULL or "(os error 28)" in text:
        return "user", f"the disk is full ({text}): make room, then continue the same run"
    return "bug", f"{type(error).__name__}: {text}"


def _is_out_of_memory(error: Exception, text: str) -> bool:
    torch = sys.modules.get("torch")
    full = (MemoryError, torch.cuda.OutOfMemoryError) if torch else (MemoryError,)
    words = isinstance(error, RuntimeError) and any(part in text for part in _NO_MEMORY)
    return isinstance(error, full) or words


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM cancel the work, once: ending it must not be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
