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
_OTHERS = ("/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/nvidiactl")  # WSL, Jetson, containers


def seen() -> bool:
    """Return whether this machine shows a sign of a GPU that torch can use."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return shutil.which("nvidia-smi") is not None or any(Path(sign).exists() for sign in _SIGNS)


def count() -> int | None:
    """Return how many CUDA devices there are; None where that is not known without torch."""
    # A host that draws has loaded it, and the worker uses the same, unless the owner names another
    torch = None if os.environ.get("RESALIGN_PYTHON") else sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        return int(torch.cuda.device_count())
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown in ("", "-1"):
        return 0
    if shown is not None or not sys.platform.startswith("linux"):
        return None
    cards = Path("/proc/driver/nvidia/gpus")
    if cards.is_dir():
        return sum(1 for _ in cards.iterdir())
    return None if seen() or any(Path(sign).exists() for sign in _OTHERS) else 0


def absent(device: str) -> str:
    """Say that a device is not there; empty where it is, or where that is not known."""
    if device == "mps" and sys.platform != "darwin":
        return "device is mps, which only Macs have: choose auto, cpu or cuda"
    kind, _, number = device.partition(":")
    known = count() if kind == "cuda" else None
    if known is None or int(number or 0) < known:
        return ""
    if not known:
        return f"device is {device}, but no GPU for CUDA was found here: choose auto or cpu"
    return (
        f"device is {device}, but the GPUs found here are cuda:0 to cuda:{known - 1}: choose auto "
        "or one of them"
    )


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
