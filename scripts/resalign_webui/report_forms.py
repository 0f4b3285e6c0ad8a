"""Turns what the page Reports sends into requests: an audit sheet, its labels, a pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...backend.errors import ConfigError, ResAlignError
from ...backend.plan.file import from_json
from ...backend.plan.probe import ProbePlan
from ...backend.plan.probe_settings import AUDITED, MOST_AUDITED, no_audit
from ...backend.report.pack_kept import check_kept
from ...backend.text import json_text
from . import host as hosts
from .checking import Values, flag, text, whole
from .host import Host
from .measure_forms import reference_of
from .runs import Probe, named

# The fields that the page's buttons send
AUDIT = ("report", "audit_count", "audit_again")
AUDIT_LABELS = ("report", "audit_labels")
PACK = (
    "report", "pack_name", "pack_model", "pack_checkpoint", "pack_license", "pack_base",
    "pack_pictures", "pack_overwrite",
)  # fmt: skip
LABELS = "audit-labels.json"  # beside the report
_LONGEST = 1 << 20  # bytes of a file of labels; 1000 of them take some 20 kB


def audit_request(values: Values, probes: list[Probe]) -> dict[str, Any]:
    """A sheet of a report's pictures, for a person to label."""
    folder = probe_of(values, probes).folder
    if why := _no_sheet(folder):
        elsewhere = ", in another probe" if why.endswith("choose a detector") else ""
        raise ConfigError(f"report: {why}{elsewhere}")
    return {
        "job": "audit",
        "report": str(folder),
        "pictures": whole(values, "audit_count", AUDITED, 1, MOST_AUDITED),
        "overwrite": flag(values, "audit_again"),
    }


def _no_sheet(folder: Path) -> str:
    """Return why a report has no pictures to label; empty where it may have some."""
    try:
        kept = json_text.read(folder / "plan.json")
        return no_audit(from_json(ProbePlan, kept["plan"]))
    except (OSError, ValueError, KeyError, TypeError, ResAlignError):
        return ""


def labels_request(values: Values, probes: list[Probe]) -> dict[str, Any]:
    """The labels that a person has saved, put into the report.

    The uploaded file is copied into the probe's folder: gradio deletes its own copy.
    """
    folder = probe_of(values, probes).folder
    record = _labels(values.get("audit_labels"))
    path = folder / LABELS
    try:
        path.write_bytes(record)
    except OSError as error:
        raise ConfigError(f"labels: {path.name} cannot be written: {error.strerror}") from None
    return {"job": "audit", "report": str(folder), "labels": str(path)}


def pack_request(values: Values, host: Host, probes: list[Probe]) -> dict[str, Any]:
    """Everything that a publisher attaches to a release, as one file."""
    folder = probe_of(values, probes).folder
    name = hosts.file_name(text(values, "pack_name", "pack") or "pack", "pack name")
    base = packs_folder(host)
    output = base.joinpath(*f"{name.removesuffix('.zip')}.zip".split("/")).absolute()
    if not hosts.inside(output, [base.resolve()]):
        raise ConfigError(f"pack name: {name!r} leads out of {base.name}")
    overwrite = flag(values, "pack_overwrite")
    if output.exists() and not overwrite:
        raise ConfigError(
            f"pack name: {output.name} exists: choose another name, or tick overwrite"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"pack name: its folder cannot be made ({error.strerror})") from None
    request = {
        "job": "pack", "report": str(folder), "output": str(output), "overwrite": overwrite,
        "model": text(values, "pack_model"), "license": text(values, "pack_license"),
        "base_model": text(values, "pack_base"),
        "pictures": _kept(values),
        "checkpoint": reference_of(values, "pack_checkpoint", host),
    }  # fmt: skip
    return {name: value for name, value in request.items() if value != ""}


def _kept(values: Values) -> str:
    kept = text(values, "pack_pictures")
    check_kept(kept or "blurred")
    return kept


def packs_folder(host: Host) -> Path:
    return hosts.work_folder(host) / "packs"


def probe_of(values: Values, probes: list[Probe]) -> Probe:
    """Return the chosen probe, whose report is there."""
    finished = [probe for probe in probes if probe.report]
    probe = named(values.get("report"), finished)
    if probe is None and not finished:
        raise ConfigError("report: no finished probe yet: make or continue one first")
    if probe is None:
        raise ConfigError("report: choose a finished probe from the list")
    return probe


def _labels(uploaded: Any) -> bytes:
    """Return what an uploaded file of labels holds: JSON of a reasonable size, or an error.

    uploaded: a path, or in gradio 3 an object with one.
    """
    path = getattr(uploaded, "name", uploaded)
    if not isinstance(path, str) or not path:
        raise ConfigError(f"labels: choose the file {LABELS} that the sheet saved")
    try:
        with open(path, "rb") as file:
            found = file.read(_LONGEST + 1)
        if len(found) > _LONGEST:
            raise ConfigError("labels: the file is too long to be one of labels")
        json_text.loads(found)
    except (OSError, ValueError):
        raise ConfigError(f"labels: this is not the file {LABELS} that the sheet saved") from None
    return found
