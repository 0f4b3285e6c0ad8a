"""Environments with the hosts' versions of gradio, made once and kept in a cache folder.

A1111 1.10.1 pins gradio 3.41.2, Forge 4.40.0; `current` is what `resalign ui` gets. The other pins
are the hosts' own, without which these old versions do not start.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

_OLD = ("httpx==0.24.1", "httpcore==0.15", "Pillow==9.5.0", "numpy==1.26.2")
REQUIREMENTS = {
    "a1111": ("gradio==3.41.2", "fastapi==0.94.0", *_OLD),
    "forge": (
        "gradio==4.40.0", "fastapi==0.104.1", "pydantic==2.8.2", "huggingface-hub==0.26.2", *_OLD,
    ),
    "current": ("gradio>=6.31",),
}  # fmt: skip
HIGHEST = (3, 11)  # Python that the old pins have wheels for


class NoEnvironment(Exception):
    """It cannot be made here; the text says why."""


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is made if it is not there."""
    if name != "current" and sys.version_info[:2] > HIGHEST:
        raise NoEnvironment(f"gradio of {name} has no wheels for Python {sys.version_info[:2]}")
    wanted = "\n".join((sys.version, *REQUIREMENTS[name]))
    key = hashlib.sha256(wanted.encode()).hexdigest()[:10]
    folder = _cache() / f"{name}-{key}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, *REQUIREMENTS[name]], capture_output=True, text=True, timeout=900
        )
        if done.returncode:
            raise NoEnvironment(f"pip cannot install gradio of {name}: {done.stderr[-500:]}")
        (folder / "complete").touch()
    return python


def _cache() -> Path:
    chosen = os.environ.get("RESALIGN_TEST_ENVIRONMENTS")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "resalign-tests"
