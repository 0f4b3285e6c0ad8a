"""Compares what is connected with what a run hardened, before a file or a report names the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bridge
from .samples import difference, samples_of, unlike

if TYPE_CHECKING:
    from .types import HardenedRun, ReportValue

EXPORT = "ResAlign_ExportHardenedCheckpoint"
FROM_RUN = "from the run"  # choices of its `source` and `write_from`
SOURCE_FILE, LOADED_MODEL = "source file", "loaded model"
AUTOMATIC = "automatic"  # the choice of Harden Model that leaves the file to ComfyUI


def check_hardened(model: Any, clip: Any, run: HardenedRun) -> None:
    """Raise an ExportError unless MODEL and CLIP are what Harden Model returned and was given."""
    from ..backend.errors import ExportError

    bridge.check_model(model)
    bare = bridge.without_adapter(model, bridge.lora_model(run.adapter, bridge.places_of(model)))
    if bare is None:
        raise ExportError(
            "the MODEL connected is not the hardened one: its weights do not carry the change of "
            "this run as the last one; connect the MODEL output of Harden Model itself, and load "
            "other LoRAs before Harden Model"
        )
    if why := other_model(bare, run):
        raise ExportError(
            f"the MODEL connected is not the one that this run hardened ({why}): the adapter lies "
            "on other weights; connect the MODEL output of Harden Model itself"
        )
    known = run.weights.get("clip")
    if known and known != bridge.fingerprint(clip.patcher):
        raise ExportError(
            "the CLIP connected is not the one that this run hardened the MODEL with: connect "
            "the CLIP that Harden Model was given"
        )


def other_model(model: Any, run: HardenedRun) -> str:
    """Return how the MODEL differs from the one that the run hardened; empty if it does not."""
    known = run.weights.get("model")
    if known:
        return "" if bridge.fingerprint(model) == known else "other weights or patches"
    places = bridge.places_of(model)
    missing = [name for name in run.samples if f"{name}.weight" not in places]
    if missing:
        return f"it has no {missing[0]}"
    return difference(bridge.module_weights(model, run.samples), run.samples)


def is_hardened(model: Any) -> bool:
    """Return whether the MODEL is Harden Model's, or of a file whose header says so, unchanged."""
    from ..backend.checkpoint.inspect import inspect
    from ..backend.errors import ResAlignError

    if bridge.is_hardened(model):
        return True
    source = bridge.source_of(model)
    if source is None or bridge.is_patched(model):
        return False
    try:
        return bool(inspect(source).hardened)
    except ResAlignError:
        return False


def check_source(model: Any, path: Path) -> None:
    """Raise a ConfigError unless the checkpoint file holds the MODEL's weights, without patches.

    The export would refuse the file after the run.
    """
    from ..backend.errors import ConfigError

    if why := difference_from(model, path):
        raise ConfigError(
            f"Harden Model: the MODEL was not loaded from {path.name}, which `checkpoint` names "
            f"({why}): choose its own file, or leave it to {AUTOMATIC}"
        )


def difference_from(model: Any, path: Path) -> str:
    """Return how a file differs from the MODEL below its patches; empty if it does not.

    Compares a few values of a few weights.
    """
    from ..backend.errors import ResAlignError

    weights = bridge.base_matrices(model)
    samples = samples_of({f"{n}.weight": w for n, w in weights.items()}, weights)
    try:
        return unlike(path, samples)
    except ResAlignError as error:
        return str(error)


def check_report(report: ReportValue, run: HardenedRun) -> None:
    """Raise an ExportError unless the report's last model is the one that the run made."""
    from ..backend.errors import ExportError
    from ..backend.probe.recorded import check_adapter
    from ..backend.probe.results_io import same_models

    if same := same_models(report.result.models):
        raise ExportError(f"the report proves nothing of this run: {same[0]}")
    try:
        check_adapter(report.result, run.adapter, needed=True)
    except ExportError as error:
        raise ExportError(
            f"{error}: connect the `run` of this Harden Model to Resilience Probe, without `after`"
        ) from None
