"""Whether a checkpoint predicts ε or v, which shapes cannot tell.

In this order: the metadata field `modelspec.prediction_type`; the marker key `v_pred` that hosts
write and read; for SD 2.x a statistic of one bias of the U-Net, which separates the published ε
(512 pixels) and v models (768 pixels) and their fine-tunes; else ε. The statistic and the marker
are those by which ComfyUI and A1111 decide.
"""

from __future__ import annotations

import statistics
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .header import Header, TensorEntry
from .keys import UNET

if TYPE_CHECKING:
    from ..model.schedule import PredictionType

V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"
_TELLING_BIAS = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_V_ABOVE = 0.09  # standard deviation of that bias
_SPELLINGS: dict[str, PredictionType] = {
    "epsilon": "epsilon", "eps": "epsilon",
    "v": "v_prediction", "v_prediction": "v_prediction", "v-prediction": "v_prediction",
    "vpred": "v_prediction", "v_pred": "v_prediction",
}  # fmt: skip


def prediction_type(path: Path, header: Header, family: str) -> PredictionType:
    """ε or v of a single-file checkpoint."""
    stated = header.metadata.get("modelspec.prediction_type", "").strip().lower()
    if stated:
        if stated not in _SPELLINGS:
            raise CheckpointError(
                f"{path.name} says that it predicts {stated!r} (modelspec.prediction_type); only "
                "epsilon and v models can be hardened"
            )
        return _SPELLINGS[stated]
    if V_MARKER in header.tensors:
        return "v_prediction"
    entry = header.tensors.get(_TELLING_BIAS)
    if family == "sd2" and entry is not None and 1 < entry.numel < 10_000:
        values = _read_floats(path, header, entry)
        if values and statistics.stdev(values) > _V_ABOVE:
            return "v_prediction"
    return "epsilon"


def wants_zero_terminal_snr(header: Header) -> bool:
    """Whether the schedule is to be rescaled to end in pure noise (marker key `ztsnr`)."""
    return ZERO_SNR_MARKER in header.tensors


def _read_floats(path: Path, header: Header, entry: TensorEntry) -> list[float]:
    """A small tensor's values without torch; empty for a storage type that is not decoded here."""
    with path.open("rb") as file:
        file.seek(header.data_start + entry.begin)
        data = file.read(entry.nbytes)
    if entry.dtype in ("F16", "F32"):
        code = "e" if entry.dtype == "F16" else "f"
        return list(struct.unpack(f"<{entry.numel}{code}", data))
    if entry.dtype == "BF16":  # the upper half of a float32
        halves = struct.unpack(f"<{entry.numel}H", data)
        return [struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in halves]
    if entry.dtype == "F8_E5M2":  # the upper half of a float16
        return [struct.unpack("<e", bytes((0, byte)))[0] for byte in data]
    if entry.dtype == "F8_E4M3":
        return [_e4m3(byte) for byte in data]
    return []


def _e4m3(byte: int) -> float:
    """Sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities (NaN is read as 480)."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = mantissa / 8 * 2**-6 if not exponent else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if byte & 128 else size
