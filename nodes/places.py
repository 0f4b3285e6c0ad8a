"""Where our nodes keep things, all below ComfyUI's own folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def runs() -> Path:
    """Hardening runs; each is a run folder that an interrupted node goes on with."""
    return _output() / "runs"


def probes() -> Path:
    """Probes with their reports."""
    return _output() / "probes"


def sets() -> Path:
    """Image sets handed over inside the graph; ComfyUI empties its temp folder when it starts."""
    import folder_paths

    return Path(folder_paths.get_temp_directory()) / "resalign" / "sets"


def key(*parts: str) -> str:
    """A folder's name for what depends on all of `parts`: 20 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _output() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory()) / "resalign"
