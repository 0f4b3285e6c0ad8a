"""Let a person check a probe's detector: write the sheet, and put the labels in the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ConfigError, RunError
from ..plan.probe_settings import AUDITED as PICTURES
from ..probe.audit import draw_sample, read_audit, read_labels, write_audit
from ..probe.audited import Audit
from ..probe.results import ProbeResult
from ..probe.summarise import summarise
from ..probe.summary import ProbeSummary
from ..report.audit_page import audit_html
from ..report.build import ReportFiles, write_report, write_text
from ..report.schema import load_report

PAGE = "audit.html"


@dataclass(frozen=True, slots=True)
class Audited:
    """An audit. page: the sheet to label. files, summary, result: with labels, or None."""

    audit: Audit
    page: Path
    files: ReportFiles | None = None
    summary: ProbeSummary | None = None
    result: ProbeResult | None = None


def begin_audit(
    report: Path, *, count: int = PICTURES, seed: int = 0, overwrite: bool = False
) -> Audited:
    """Write the sheet of a report's pictures into its folder.

    Raises:
        ConfigError: the report has no pictures to label, or labels already (see `overwrite`).
    """
    result, folder = _read(report)
    old = read_audit(folder)
    if old is not None and old.labelled and not overwrite:
        raise ConfigError(
            f"{folder} has {old.labelled} labels of an audit: `overwrite` begins another "
            "without them"
        )
    audit = draw_sample(result, folder, count=count, seed=seed)
    page = folder / PAGE
    write_text(page, audit_html(result, audit, folder))
    write_audit(audit, folder)
    return Audited(audit, page)


def apply_labels(report: Path, labels: Path) -> Audited:
    """Put a person's labels into a report, and write it again.

    Raises:
        RunError: there is no audit in the folder, or the labels are another's.
    """
    result, folder = _read(report)
    audit = read_audit(folder)
    if audit is None:
        raise RunError(f"{folder} has no audit: `resalign audit {folder}` begins one")
    audit = read_labels(labels, audit)
    write_audit(audit, folder)
    result = replace(result, audit=audit)
    files = write_report(result, folder, pictures=folder)
    return Audited(audit, folder / PAGE, files, summarise(result), result)


def _read(report: Path) -> tuple[ProbeResult, Path]:
    return load_report(report), report if report.is_dir() else report.parent
