"""Further inputs of Resilience Probe: what makes a probe stand up to a sceptic.

A second detector, a user's own style, a sibling's LoRA, reference models and an audit by a person.
None is needed, and each takes time; they come last because workflows store values by position.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..backend.plan.attack import ORIGINAL
from ..backend.plan.probe_settings import MOST_AUDITED, SCORERS
from . import types

if TYPE_CHECKING:
    from ..backend.plan.images import ImageSet
    from ..backend.probe.results import ProbeResult

NONE = "none"


def further_inputs() -> list[Any]:
    from .sources import model_files

    return [
        types.advanced(
            io.Combo, "second_scorer", options=[NONE, *SCORERS], default=NONE,
            tooltip="Another detector on the same pictures; the report says how often they agree.",
        ),
        types.advanced(
            io.Combo, "sibling", default=NONE,
            options=[NONE, ORIGINAL, *model_files()],
            tooltip="Checkpoint on which a LoRA of the concept is trained. It is then put on each "
            "model, as people do with LoRAs from the web.",
        ),
        types.advanced(
            io.Int, "audit_pictures", default=0, min=0, max=MOST_AUDITED,
            tooltip="Pictures on a sheet that you label by hand in the browser, 50 for instance, "
            "to correct the detector's mistakes. Flagged pictures are then kept without blur. "
            "The sheet opens only on the machine that ComfyUI runs on.",
        ),
        types.advanced(
            io.String, "audit_labels", default="",
            tooltip="The file audit-labels.json that the sheet saved; absolute, or below "
            "ComfyUI's input folder. Its labels go into the report.",
        ),
        types.Images.Input(
            "style_images", optional=True,
            tooltip="A style or subject of your own, from Image Set: does each model still learn "
            "it? A quarter of the pictures is kept for the test.",
        ),
        io.Model.Input(
            "oracle", optional=True,
            tooltip="The same network trained without the concept; the report says how far the "
            "hardened model is on the way to it.",
        ),
        io.Model.Input(
            "plain", optional=True,
            tooltip="A MODEL made by another method, where that way begins, such as plain "
            "unlearning. Without it, the way begins at the original.",
        ),
    ]  # fmt: skip


def sibling_of(choice: str, source: Path | None) -> str:
    """Return the file on which the sibling's LoRA is trained; empty for no such attack."""
    from ..backend.errors import ConfigError

    if choice in ("", NONE):
        return ""
    if choice == ORIGINAL:
        if source is None:
            raise ConfigError(
                "Resilience Probe: sibling: the original's file is not known; choose it in the list"
            )
        return ORIGINAL
    from .sources import model_file

    return str(model_file(choice))


def style_folder(images: ImageSet | None) -> str:
    """Return the folder of a user's style; empty where nothing is connected."""
    from ..backend.errors import ConfigError

    if images is None:
        return ""
    if not images.folder or images.caption:
        raise ConfigError(
            "Resilience Probe: style_images: connect an Image Set with a folder, images or "
            "latents, and a caption for each image"
        )
    return images.folder


def labels_stamp(labels: str | None) -> str:
    """Return what changes when the file of labels does, so that its node runs again."""
    path = _labels_file(labels or "")
    return f"{path.stat().st_mtime_ns}" if path is not None and path.is_file() else ""


def _labels_file(labels: str) -> Path | None:
    from .images import resolved

    return resolved(labels.strip().strip('"'))


def missing_labels(labels: str) -> str:
    """Return what is wrong with the file of labels that is named; empty if it is there, or none."""
    path = _labels_file(labels)
    return "" if path is None or path.is_file() else f"audit_labels: {path} does not exist"


def audited(result: ProbeResult, folder: Path, count: int, labels: str) -> ProbeResult:
    """Draw the sheet for a person if there is none, and put their labels into the report."""
    from ..backend.errors import ConfigError
    from ..backend.jobs.audit import apply_labels, begin_audit
    from ..backend.probe.audit import read_audit
    from ..backend.report.schema import load_report

    if count and result.complete:
        old = read_audit(folder)
        if old is None or (not old.labelled and len(old.pictures) != count):
            begin_audit(folder, count=count, overwrite=True)
    path = _labels_file(labels)
    if path is not None:
        if why := missing_labels(labels):
            raise ConfigError(f"Resilience Probe: {why}")
        apply_labels(folder, path)
    has_labels = (old := read_audit(folder)) is not None and old.labelled
    return load_report(folder) if has_labels else result
