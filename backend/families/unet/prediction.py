"""Finds what a checkpoint's denoiser predicts, and if its schedule ends in pure noise.

Shapes cannot tell. A single file may state it in several places:

    prediction      modelspec.prediction_type (ModelSpec, kohya), modelspec.predict_key (ComfyUI),
                    prediction_type, ss_v_parameterization and ss_v_prediction (kohya), a
                    modelspec.architecture or ss_base_model_version that ends in `-v` or `_v`, the
                    marker tensor v_pred
    zero final SNR  ss_zero_terminal_snr (kohya), zero_terminal_snr, ztsnr, the marker tensor ztsnr

All of them are read; two that contradict each other are refused, since hosts differ in what they
believe. The caller may decide (`epsilon`, `v` or `v-zsnr`), and so may the file's own
`resalign.config`. Without any statement, SD 2.x is decided by a statistic of one bias of the
U-Net, which separates the published ε (512 pixels) and v models (768 pixels) and their fine-tunes;
everything else predicts ε. The statistic and the markers are those by which ComfyUI and A1111
decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ...errors import CheckpointError, UndecidedError
from ...text import json_text
from ..base.overrides import CONFIG_KEY
from ..base.stored import DECISIONS, StoredFile
from .names import UNET
from .spec import Variant

if TYPE_CHECKING:
    from ..base.process import Prediction

V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"
_TELLING_BIAS = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_V_ABOVE = 0.09  # standard deviation of that bias
_NAMES = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
_SWITCHES = ("ss_v_parameterization", "ss_v_prediction")
_ENDINGS = ("modelspec.architecture", "ss_base_model_version")
_ZERO_SNR = ("ss_zero_terminal_snr", "zero_terminal_snr", "ztsnr")
_TIMES = "modelspec.timestep_range"
_SPELLINGS: dict[str, Prediction] = {
    "epsilon": "epsilon", "eps": "epsilon",
    "v": "v_prediction", "v_prediction": "v_prediction", "v-prediction": "v_prediction",
    "vpred": "v_prediction", "v_pred": "v_prediction",
}  # fmt: skip
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_UNSAID = ("", "none", "null")


class Statement(NamedTuple):
    """Statement of one place in a file. place: as a message names it."""

    place: str
    value: Any


def prediction_type(file: StoredFile, variant: Variant) -> Prediction:
    """Tell whether a single-file checkpoint predicts ε or v."""
    _check_times(file)
    if file.decided:
        return DECISIONS[file.decided].prediction
    own = _own_config(file).get("prediction_type")
    if isinstance(own, str) and own in _SPELLINGS:
        return _SPELLINGS[own]
    stated = _agreed(file, list(_predictions(file)), "predicts")
    if stated is not None:
        return stated
    entry = file.tensors.get(_TELLING_BIAS)
    if variant == "linear" and entry is not None and 1 < entry.numel < 10_000:
        import statistics  # slow to load, and few files need it

        values = file.read(_TELLING_BIAS)
        if values and statistics.stdev(values) > _V_ABOVE:
            return "v_prediction"
    return "epsilon"


def wants_zero_terminal_snr(file: StoredFile) -> bool:
    """True where the schedule is to be rescaled to end in pure noise."""
    if file.decided:
        return DECISIONS[file.decided].zero_snr
    own = _own_config(file).get("rescale_betas_zero_snr")
    if isinstance(own, bool):
        return own
    return bool(_agreed(file, list(_zero_snr(file)), "zero terminal SNR"))


def _predictions(file: StoredFile) -> Iterator[Statement]:
    for name in _NAMES:
        stated = file.metadata.get(name, "").strip().lower()
        if stated in _UNSAID:
            continue
        if stated not in _SPELLINGS:
            raise CheckpointError(
                f"{file.name} says that it predicts {stated!r} ({name}); only "
                "epsilon and v models can be hardened"
            )
        yield Statement(f"{name} = {file.metadata[name]}", _SPELLINGS[stated])
    for name in _SWITCHES:
        if (found := _truth(file, name)) is not None:
            kind: Literal["epsilon", "v_prediction"] = "v_prediction" if found else "epsilon"
            yield Statement(f"{name} = {file.metadata[name]}", kind)
    for name in _ENDINGS:
        stated = file.metadata.get(name, "").strip().lower()
        if stated.endswith(("_v", "-v")):
            yield Statement(f"{name} = {file.metadata[name]}", "v_prediction")
    if V_MARKER in file.tensors:
        yield Statement(f"the tensor {V_MARKER}", "v_prediction")


def _zero_snr(file: StoredFile) -> Iterator[Statement]:
    for name in _ZERO_SNR:
        if (found := _truth(file, name)) is not None:
            yield Statement(f"{name} = {file.metadata[name]}", found)
    if ZERO_SNR_MARKER in file.tensors:
        yield Statement(f"the tensor {ZERO_SNR_MARKER}", True)


def _agreed(file: StoredFile, statements: list[Statement], what: str) -> Any:
    """Return what all statements say, None without any; raise where two differ."""
    for other in statements[1:]:
        if other.value != statements[0].value:
            raise UndecidedError(
                f"{file.name} contradicts itself ({what}): {statements[0].place}, but "
                f"{other.place}. Hosts differ in which of the two they follow: decide with "
                "--prediction epsilon, v or v-zsnr (`prediction` in a plan file and in the tab)"
            )
    return statements[0].value if statements else None


def _truth(file: StoredFile, name: str) -> bool | None:
    text = file.metadata.get(name, "").strip().lower()
    if text in _UNSAID:
        return None
    if text not in _TRUTHS:
        raise UndecidedError(
            f"{file.name}: its metadata field {name} is {file.metadata[name][:60]!r}, which is "
            "neither true nor false: correct it, or decide with --prediction"
        )
    return _TRUTHS[text]


def _check_times(file: StoredFile) -> None:
    """Refuse experts for a part of the noise levels, such as the SDXL refiner."""
    stated = file.metadata.get(_TIMES, "").strip()
    if stated.lower() in _UNSAID:
        return
    try:
        first, last = (float(part) for part in stated.split(","))
    except ValueError:
        first, last = float("nan"), float("nan")
    if not (first <= 1 and last >= 999):
        raise CheckpointError(
            f"{file.name} was trained for a part of the noise levels ({_TIMES} = {stated!r}): only "
            "models for all of them (0,1000) can be hardened"
        )


def _own_config(file: StoredFile) -> dict[str, Any]:
    """Return what `resalign.config` says of the scheduler; it is checked where it is applied."""
    try:
        found = json_text.loads(file.metadata.get(CONFIG_KEY, "{}"))
        scheduler = found.get("scheduler", {})
    except (ValueError, AttributeError):
        return {}
    return scheduler if isinstance(scheduler, dict) else {}
