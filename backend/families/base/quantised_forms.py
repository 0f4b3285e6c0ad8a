"""Names the form of quantised weights by the tensors that stand beside them."""

from __future__ import annotations

from collections.abc import Mapping

from .shapes import StoredTensor

# Whole numbers in place of weights. F8_E4M3 and F8_E5M2 without scales are plain fp8 storage.
_PACKED = {"I8", "U8", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"}
_INT8 = "int8 with scales"

# (form, what a name ends with); the first form with a name in the file decides.
_BY_END: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("SVDQuant, as of Nunchaku", (".wscales", ".smooth_factor", ".smooth_factor_orig", ".wtscale")),
    ("nf4 of bitsandbytes", (".quant_state.bitsandbytes__nf4",)),
    ("fp4 of bitsandbytes", (".quant_state.bitsandbytes__fp4",)),
    ("int8 of bitsandbytes", (".SCB", ".weight_format")),
    ("4 bits of bitsandbytes", (".absmax", ".quant_map")),
    ("GPTQ, AWQ or alike", (".qweight", ".qzeros")),
    ("compressed-tensors", (".weight_packed",)),
    ("Quanto", (".weight._data", ".weight._scale")),
    ("NVFP4", (".weight_scale_2",)),
    (
        "scaled fp8",
        ("scaled_fp8", ".scale_weight", ".weight_scale", ".scale_input", ".input_scale",
         ".comfy_quant"),
    ),
)  # fmt: skip


def quantised_form(tensors: Mapping[str, StoredTensor]) -> str:
    """Return the form of a file's weights and the tensor that shows it; empty where all are
    floating point."""
    for form, ends in _BY_END:
        mark = next((name for name in tensors if name.endswith(ends)), None)
        if mark is not None:
            return f"{_scaled(tensors) if form == 'scaled fp8' else form}: it has {mark}"
    for name, entry in tensors.items():
        if entry.dtype in _PACKED and len(entry.shape) > 1:
            return f"{name} is {entry.dtype}"
    return ""


def _scaled(tensors: Mapping[str, StoredTensor]) -> str:
    """Tell the forms that share the names of their scales by the types of weights and scales."""
    for name, entry in tensors.items():
        if name.endswith(".weight") and len(entry.shape) > 1 and entry.dtype in _PACKED:
            return _INT8 if entry.dtype == "I8" else "4 bits with scales"
        if name.endswith(".weight_scale") and len(entry.shape) > 1 and entry.dtype in _PACKED:
            return "MXFP8"
    return "scaled fp8"
