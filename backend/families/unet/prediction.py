"""Tells checkpoints that predict ε from those that predict v, which shapes cannot.

In this order: the metadata field `modelspec.prediction_type`; the marker key `v_pred` that hosts
write and read; for SD 2.x a statistic of one bias of the U-Net, which separates the published ε
(512 pixels) and v models (768 pixels) and their fine-tunes; else ε. The statistic and the marker
are those by which ComfyUI and A1111 decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import CheckpointError
from ..base.stored import StoredFile
from .names import UNET
from .spec import Variant

if TYPE_CHECKING:
    from ..base.process import Prediction

V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"
_TELLING_BIAS = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_V_ABOVE = 0.09  # standard deviation of that bias
_SPELLINGS: dict[str, Prediction] = {
    "epsilon": "epsilon", "eps": "epsilon",
    "v": "v_prediction", "v_prediction": "v_prediction", "v-prediction": "v_prediction",
    "vpred": "v_prediction", "v_pred": "v_prediction",
}  # fmt: skip


def prediction_type(file: StoredFile, variant: Variant) -> Prediction:
    """Tell whether a single-file checkpoint predicts ε or v."""
    stated = file.metadata.get("modelspec.prediction_type", "").strip().lower()
    if stated:
        if stated not in _SPELLINGS:
            raise CheckpointError(
                f"{file.name} says that it predicts {stated!r} (modelspec.prediction_type); only "
                "epsilon and v models can be hardened"
            )
        return _SPELLINGS[stated]
    if V_MARKER in file.tensors:
        return "v_prediction"
    entry = file.tensors.get(_TELLING_BIAS)
    if variant == "linear" and entry is not None and 1 < entry.numel < 10_000:
        import statistics  # slow to load, and few files need it

        values = file.read(_TELLING_BIAS)
        if values and statistics.stdev(values) > _V_ABOVE:
            return "v_prediction"
    return "epsilon"


def wants_zero_terminal_snr(file: StoredFile) -> bool:
    """True where the schedule is to be rescaled to end in pure noise (marker key `ztsnr`)."""
    return ZERO_SNR_MARKER in file.tensors
