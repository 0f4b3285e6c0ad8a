"""Writes the report of a probe into a folder; joins hardening and probe to one report.

report.json     all data that figures are computed from (schema.py)
report.html     the page for a reader: one self-contained file (page.py)
report.md       for a model card (markdown.py)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExportError
from ..plan.concept import shown_names
from ..plan.file import plan_hash, to_json
from ..plan.hardening import HardeningPlan
from ..probe.results import ProbeResult
from ..probe.summarise import summarise
from ..run.json_lines import finite
from .card import training_summary
from .markdown import report_markdown
from .markdown_text import escape, table
from .page import report_html
from .plots import plot_curves
from .schema import to_report_json, without_paths
from .view import View
from .words import figure

if TYPE_CHECKING:
    from ..hardening.run import HardenResult


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Paths of a written report."""

    json: Path
    html: Path
    markdown: Path


def write_report(
    result: ProbeResult, folder: Path | str, *, pictures: Path | str | None = None
) -> ReportFiles:
    """Write `report.json`, `report.html` and `report.md` into a folder, each atomically.

    The same result gives the same bytes. The report of an unfinished probe says that it is one.

    Args:
        pictures: the probe's folder, to which `SetEvaluation.pictures` are relative; None leaves
            pictures out. A missing picture becomes a placeholder.

    Raises:
        ExportError: the folder cannot be written to.
    """
    folder = Path(folder)
    files = ReportFiles(folder / "report.json", folder / "report.html", folder / "report.md")
    # All three are made before one is written, so that an error leaves the old report in place.
    texts = {
        files.json: to_report_json(result, summarise(result).to_json()),
        files.html: report_html(result, Path(pictures) if pictures is not None else None),
        files.markdown: report_markdown(result),
    }
    for path, text in texts.items():
        write_text(path, text)
    return files


def curve_png(result: ProbeResult, path: Path | str) -> Path:
    """Draw the curves of the attacks that train as one PNG on white, without those of sweeps.
    Return the path."""
    view = View(result)
    single = [attack for attack in view.curved if attack not in view.swept]
    return plot_curves([(attack, view.curves(attack)) for attack in single], path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Hardening and probe of a checkpoint in one report."""

    plan: HardeningPlan
    training: Mapping[str, Any]
    probes: ProbeResult
    seconds: float
    warnings: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """The run in a table, then the probe's report, for a reader."""
        plan = self.plan
        rows = [
            ["Concepts", ", ".join(escape(name) for name in shown_names(plan.concepts))],
            ["Simulated users", f"{len(plan.fine_tunes)}, as {plan.simulate}"
             if plan.fine_tunes else "none: plain unlearning"],
            ["Loss on the concepts", plan.harm.loss],
            ["Outer steps", str(self.training.get("steps", 0))],
            ["Seed", str(plan.seed)],
            ["Seconds", f"{self.seconds:.0f}"],
            ["Plan (SHA-256)", f"`{plan_hash(plan)}`"],
        ]  # fmt: skip
        for name in ("harm", "harm_after", "q", "retain"):
            if f"{name}_first" in self.training:
                ends = (figure(self.training[f"{name}_{end}"]) for end in ("first", "last"))
                rows.append([f"{escape(name)}, first → last", " → ".join(ends)])
        if self.training.get("skipped_solves"):
            rows.append(["Skipped solves", str(self.training["skipped_solves"])])
        parts = ["## Hardening", table(["", ""], rows)]
        parts += [f"**Warning:** {escape(warning)}" for warning in self.warnings]
        return "\n\n".join([*parts, report_markdown(self.probes)])

    def to_json(self) -> dict[str, Any]:
        """Plan, training figures, and `report.json` under `probe`, for a program."""
        return {
            "hardening": finite({
                "plan": to_json(without_paths(self.plan)),
                "plan_sha256": plan_hash(self.plan),
                "training": dict(self.training),
                "seconds": self.seconds,
                "warnings": list(self.warnings),
            }),
            "probe": json.loads(to_report_json(self.probes, summarise(self.probes).to_json())),
        }  # fmt: skip


def build_report(plan: HardeningPlan, result: HardenResult, probes: ProbeResult) -> Report:
    """Join hardening and probe to one report. probes: of the checkpoint that `result` made."""
    return Report(
        plan=plan,
        training=training_summary(result.records),
        probes=probes,
        seconds=result.seconds,
        warnings=result.warnings,
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; a crash leaves the old file in place."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from None
