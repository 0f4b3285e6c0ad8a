"""Checks that the file which a probe measured was exported from a run, whose figures it then has.

A report of a file says nothing of the adapter in it, so the file itself is compared: it must be the
one that was measured, and the run's checkpoint with exactly the run's change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..adapter.dense import AnyAdapter
from ..checkpoint.detect import detect_denoiser
from ..checkpoint.inspect import inspect
from ..checkpoint.verify import verify_export
from ..errors import ExportError, ResAlignError
from ..text import json_text

if TYPE_CHECKING:
    from ..checkpoint.info import CheckpointInfo
    from ..probe.results import ModelInfo

_ADVICE = (
    "its figures cannot be written into this run's export: probe the run itself and export with "
    "that report, or export without one"
)


def check_measured_file(
    folder: Path, model: ModelInfo, adapter: AnyAdapter, source: Path | CheckpointInfo
) -> None:
    """Raise an ExportError unless a probe's model is a file that was exported from this run.

    folder: of the probe, whose job names the file. Reads that file and the source once.
    """
    path = measured_path(folder, model.name)
    if path is None or not path.exists():
        raise ExportError(
            f"the probe does not say which run its model {model.name} comes from, and the file "
            f"that it measured ({model.source or 'unknown'}) is not there to be compared: {_ADVICE}"
        )
    try:
        if not model.sha256 or inspect(path, hash=True).sha256 != model.sha256:
            raise ExportError(f"{path.name} is not the file that the probe measured: {_ADVICE}")
        verify_export(detect_denoiser(source), path, adapter)
    except ExportError as error:
        if _ADVICE in str(error):
            raise
        raise ExportError(
            f"the probe measured {path.name}, which was not exported from this run ({error}): "
            f"{_ADVICE}"
        ) from None
    except ResAlignError as error:
        raise ExportError(
            f"the file that the probe measured cannot be compared: {error}: {_ADVICE}"
        ) from None


def measured_path(folder: Path, name: str) -> Path | None:
    """Return the file or folder that a probe measured under a name; None where it is not known."""
    try:
        job = json_text.read((folder if folder.is_dir() else folder.parent) / "job.json")
        found = {str(one.get("name")): one.get("path") for one in job["checkpoints"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    path = found.get(name)
    return Path(path) if isinstance(path, str) and path else None
