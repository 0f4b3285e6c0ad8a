"""Compares what is connected with what a run hardened, before a file or a report names the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bridge
from .samples import check_samples, difference, samples_of

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

    Compares a few values of a few weights: the export would refuse the file after the run.
    """
    from ..backend.errors import ConfigError, ResAlignError

    weights = bridge.base_matrices(model)
    try:
        check_samples(path, samples_of({f"{n}.weight": w for n, w in weights.items()}, weights))
    except ResAlignError as error:
        raise ConfigError(
            f"Harden Model: the MODEL was not loaded from {path.name}, which `checkpoint` names "
            f"({error}): choose its own file, or leave it to {AUTOMATIC}"
        ) from None


def check_exports(model: Any, source: Path | None, hidden: Any) -> None:
    """Raise a ConfigError if an Export of this graph would refuse the run after hours of work.

    hidden: the node's hidden inputs, with the graph in the API format.
    """
    from ..backend.checkpoint.detect import detect_as
    from ..backend.errors import ConfigError, ResAlignError

    named = _source_exports(getattr(hidden, "prompt", None), getattr(hidden, "unique_id", None))
    if not named:
        return
    why = ""
    if bridge.is_patched(model):
        why = "the MODEL has LoRAs or merges on it, which its file lacks"
    elif source is None and FROM_RUN in named:
        why = "the file that the MODEL was loaded from is not known"
    elif source is not None and FROM_RUN in named:
        try:
            detect_as(source, bridge.decision_of(model), alone=True)
        except ResAlignError as error:
            why = str(error)
    if why:
        raise ConfigError(
            "Export Hardened Checkpoint, which this run feeds, could not rewrite the source file "
            f"({why}): set its write_from to 'loaded model' and connect model, clip and vae there"
        )


def _source_exports(prompt: Any, node: Any) -> list[str]:
    """Return the `source` of each Export that rewrites the file of this node's run."""
    found = []
    for other in prompt.values() if isinstance(prompt, dict) else ():
        inputs = other.get("inputs", {}) if isinstance(other, dict) else {}
        link = inputs.get("run")
        own = isinstance(link, (list, tuple)) and link and str(link[0]) == str(node)
        if own and other.get("class_type") == EXPORT and inputs.get("write_from") == SOURCE_FILE:
            found.append(str(inputs.get("source")))
    return found


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
