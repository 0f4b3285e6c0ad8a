"""Whether a job has a GPU to work on, as far as that can be seen without torch."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from .host import Host

_SIGNS = ("/proc/driver/nvidia", "/dev/kfd")  # of the drivers of NVIDIA and AMD on Linux


def seen() -> bool:
    """Return whether this machine shows a sign of a GPU that torch can use."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return shutil.which("nvidia-smi") is not None or any(Path(sign).exists() for sign in _SIGNS)


def lacking(device: Any, host: Host) -> str:
    """Say that no GPU is to be used, for times that are not known; empty where one may be.

    device: that of the form; empty for the host's setting.
    """
    chosen = str(device or host.setting("device") or "auto").strip()
    if chosen != "cpu" and (chosen != "auto" or host.sees_gpu()):
        return ""
    why = "No GPU is used" if chosen == "cpu" else "No GPU was found"
    return (
        f"{why}: times are not known before this checkpoint was hardened here once; expect many "
        "times what a GPU takes."
    )
