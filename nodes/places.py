"""The folders that our nodes use, all below ComfyUI's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def runs() -> Path:
    """Return the folder of hardening runs, which an interrupted node continues."""
    return _output() / "runs"


def probes() -> Path:
    """Return the folder of probes and their reports."""
    return _output() / "probes"


def packs() -> Path:
    """Return the folder of packs for a release."""
    return _output() / "packs"


def sets() -> Path:
    """Return the folder of sets from the graph; ComfyUI empties its temp folder at its start."""
    import folder_paths

    return Path(folder_paths.get_temp_directory()) / "resalign" / "sets"


def key(*parts: str) -> str:
    """Return a folder name that depends on all `parts`: 20 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _output() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory()) / "resalign"
