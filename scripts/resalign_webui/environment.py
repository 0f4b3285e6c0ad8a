"""Finds, builds and repairs the Python environment of the worker of A1111 and Forge.

These hosts pin versions that the worker cannot use, and their packages are never touched: the
worker has an environment of its own (side_venv.py). install.py builds it when the host starts,
and so does the tab's button. It counts as ready only after a hardening step has run with it.

Loaded by install.py before anything is installed, so it imports only the standard library; that
is also why the lock below does not use filelock.

Files in folder(), where key() distinguishes hosts that share one checkout:
    <key>-<time>/      a venv; nothing uses it before <key>.json names it
    <key>.json         replaced as a whole: what side_venv.make returned
    <key>.failed.json  why the last attempt failed
    <key>.lock         held, by the operating system, while a process builds one
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .side_venv import ROOT, BuildError, OnLine, installer, make

# Brought by the hosts as well, but perhaps too old; requirements.txt has the rest.
HOSTS_BRING = ("numpy>=1.24", "pillow>=9.5", "tqdm>=4.64", "transformers>=4.44")


class Status(NamedTuple):
    """state: ready, missing, broken or building; python: the worker's, when ready."""

    state: str
    reason: str = ""
    command: str = ""
    python: Path | None = None


def worker_python() -> Path:
    """Return the worker's interpreter; a RunError says why there is none and what to do.

    In A1111 and Forge it is the one of the environment built here, elsewhere our own.
    RESALIGN_PYTHON, if set, takes precedence.
    """
    from ...backend.errors import RunError

    chosen = os.environ.get("RESALIGN_PYTHON")
    if chosen:
        return Path(chosen)
    if "modules.script_callbacks" not in sys.modules:
        return Path(sys.executable)
    found = status()
    if found.python is None:
        raise RunError(f"{found.reason}. By hand: {found.command}")
    return found.python


def folder() -> Path:
    """Return the folder of the environments: RESALIGN_WEBUI_ENV, or inside the extension.

    There git ignores it, so that updates keep it, and deleting the extension deletes it too.
    """
    chosen = os.environ.get("RESALIGN_WEBUI_ENV")
    return Path(chosen).absolute() if chosen else ROOT / ".webui-env"


def key() -> str:
    """Return a key that identifies the host's environment."""
    prefix = hashlib.sha256(os.path.abspath(sys.prefix).encode()).hexdigest()[:8]
    return f"py{sys.version_info[0]}.{sys.version_info[1]}-{prefix}"


def requirements() -> str:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return "\n".join((text, *HOSTS_BRING))


def command() -> str:
    """Return the command to run by hand; it prints what it does."""
    return f'"{sys.executable}" "{ROOT / "install.py"}" --webui'


def status() -> Status:
    """Return the status of the worker's environment in milliseconds, without importing torch."""
    try:
        wrong = _wrong_with(found := _read(f"{key()}.json"))
        if not wrong:
            return Status("ready", python=Path(found["python"]))
        state, reason = "broken", f"the worker's environment no longer matches the host: {wrong}"
    except FileNotFoundError:
        state, reason = "missing", "the worker's environment has not been made yet"
    except (ValueError, KeyError, TypeError, AttributeError):
        state, reason = "broken", f"{key()}.json in {folder()} is damaged"
    except OSError as error:
        return Status("broken", f"{folder()} cannot be read ({error})", command())
    if _being_made():
        return Status("building", "the worker's environment is being made", command())
    if failed := _last_failure():
        reason = f"{reason}, and making it failed: {failed['reason']}"
    return Status(state, reason, command())


def _wrong_with(found: dict) -> str:
    torch, version = installer().installed("torch"), platform.python_version()
    if found["torch"] != torch:
        return f"it was made for torch {found['torch']}, and the host has {torch or 'none'} now"
    if found["version"] != version:
        return f"it was made for Python {found['version']}, and the host has {version} now"
    if not Path(found["python"]).exists():
        return f"{found['python']} is gone"
    lacking = installer().missing(requirements(), found["site"])
    return f"it lacks {', '.join(lacking)}" if lacking else ""


def build(on_line: OnLine, *, again: bool = True) -> Status:
    """Build or repair the worker's environment unless it is ready.

    on_line: called with each line of output. again: also if the last attempt showed that none of
    the available versions works and nothing has changed since. The returned status describes
    failures; a half-built environment never counts as ready.
    """
    before = status()
    if before.state == "ready":
        return before
    try:
        with _alone() as alone:
            if not alone:
                return Status("building", "another process is making it", command())
            failed = _last_failure()
            hopeless = failed and not failed["again"] and failed["fingerprint"] == _fingerprint()
            if hopeless and not again:
                return before
            _delete_unused()
            on_line(f"Making the worker's environment in {folder()}.")
            on_line("It takes about a minute and up to 300 MB; the host's packages stay untouched.")
            _write(f"{key()}.json", make(folder() / key(), requirements(), on_line))
            (folder() / f"{key()}.failed.json").unlink(missing_ok=True)
    except BuildError as error:
        return _failed(before.state, str(error), error.again)
    except OSError as error:
        reason = f"{error}; RESALIGN_WEBUI_ENV can name a folder on another disk"
        return _failed(before.state, reason, again=True)
    return status()


def tidy() -> bool:
    """Return whether it is ready; if so, delete earlier environments."""
    if status().state != "ready":
        return False
    if len(list(folder().glob(f"{key()}-*"))) > 1:
        with contextlib.suppress(OSError), _alone() as alone:
            if alone:
                _delete_unused()
    return True


def _delete_unused() -> None:
    """Delete incomplete and replaced environments."""
    try:
        kept = Path(_read(f"{key()}.json")["python"])
    except (OSError, ValueError, KeyError, TypeError):
        kept = Path()
    for old in folder().glob(f"{key()}-*"):
        if old not in kept.parents:
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _alone(*, create: bool = True) -> Iterator[bool]:
    """Lock this environment; yield whether no other process or thread is building it."""
    if create:
        folder().mkdir(parents=True, exist_ok=True)
    with (folder() / f"{key()}.lock").open("ab" if create else "rb+") as file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except (BlockingIOError, PermissionError):
            alone = False
        except OSError:  # a network drive without locks: build without one
            alone = True
        yield alone  # closing the file, or the end of the process, releases the lock


def _being_made() -> bool:
    try:
        with _alone(create=False) as alone:
            return not alone
    except OSError:
        return False


def _last_failure() -> dict:
    try:
        found = _read(f"{key()}.failed.json")
        return found if {"reason", "again", "fingerprint"} <= set(found) else {}
    except (OSError, ValueError, TypeError):
        return {}


def _fingerprint() -> str:
    """Hash what could change the outcome of the next attempt, apart from network and disk."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    texts = (platform.python_version(), installer().installed("torch"), requirements())
    return hashlib.sha256("\n".join(texts).encode() + sources).hexdigest()


def _failed(state: str, reason: str, again: bool) -> Status:
    content = {"reason": reason, "again": again, "fingerprint": _fingerprint()}
    with contextlib.suppress(OSError):  # a full or read-only disk is already reported
        _write(f"{key()}.failed.json", content)
    return Status(state, f"making the worker's environment failed: {reason}", command())


def _read(name: str) -> dict:
    return json.loads((folder() / name).read_text(encoding="utf-8"))


def _write(name: str, content: dict) -> None:
    temporary = folder() / f"{name}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder() / name)
