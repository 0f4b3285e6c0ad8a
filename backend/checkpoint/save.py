"""Export a hardened checkpoint by rewriting its source: only what the adapter touches changes.

Loading a model and saving it again loses precision, drops tensors and doubles files. So the source
file is copied tensor by tensor: W + ΔW where the adapter has a module, in W's own type; the same
bytes everywhere else. The result appears under its name in one move, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..adapter.dense import AnyAdapter
from ..errors import ExportError
from ..model.model import Model
from ..numerics.determinism import threads
from ..progress import ProgressCallback, silent
from .detect import detect_denoiser
from .export.file import export_file
from .export.folder import export_folder
from .export.job import Export, ExportReport
from .export.slices import touched_tensors
from .info import CheckpointInfo
from .metadata import Provenance

__all__ = ["ExportReport", "export_merged", "source_of"]


def export_merged(
    model_or_path: Model | str | Path | CheckpointInfo,
    adapter: AnyAdapter,
    target: str | Path,
    *,
    provenance: Provenance | None = None,
    overwrite: bool = False,
    hash_file: bool = False,
    expected: Mapping[str, str] | None = None,
    on_progress: ProgressCallback = silent,
) -> ExportReport:
    """Write the source with the adapter merged in, as a file or, from a folder, a folder.

    model_or_path: the checkpoint's file or diffusers folder, or one that `detect` has recognised,
    or the model loaded from it (only its `source` is used, and what was decided of it). hash_file:
    also report the SHA-256 of the whole new file, which is read once more for it because the header
    holds the hashes of the data. expected: SHA-256 of the source's files, as of `source_hashes`;
    nothing is written if they have changed. Progress counts MiB, first of stage `export`, then of
    `hash`.
    """
    decided = model_or_path.decided if isinstance(model_or_path, Model) else ""
    info = detect_denoiser(source_of(model_or_path), prediction=decided)
    target = Path(target)
    touched = touched_tensors(info, adapter)
    if not touched:
        raise ExportError("the adapter has no modules: there is nothing to export")
    job = Export(
        info,
        adapter,
        touched,
        target,
        provenance or Provenance(),
        overwrite,
        hash_file,
        on_progress,
        dict(expected or {}),
    )
    # Merging is small work between hashes that have threads of their own: more threads per
    # operation only wait for one another, at full load of the cores that hash.
    with threads(1):
        return export_folder(job) if info.layout == "diffusers" else export_file(job)


def source_of(model_or_path: Model | str | Path | CheckpointInfo) -> Path | CheckpointInfo:
    """Return the file or folder that a model came from."""
    if isinstance(model_or_path, CheckpointInfo):
        return model_or_path
    if not isinstance(model_or_path, Model):
        return Path(model_or_path)
    if model_or_path.source is None:
        raise ExportError(
            "this model was handed over by a host, not loaded from a file, so there is no source "
            "to rewrite: export with the path of its checkpoint instead"
        )
    return model_or_path.source
