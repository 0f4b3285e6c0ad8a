"""The report of a probe, as files in one folder; and of hardening and probe together.

report.json     everything that the figures are computed from (schema.py)
report.html     for a reader: one file that needs nothing else (page.py)
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
from ..plan.file import plan_hash, to_json
from ..plan.hardening import HardeningPlan
from ..probe.results import ProbeResult
from ..probe.summary import summarise
from ..run.json_lines import finite
from .card import training_summary
from .curves import draw_png
from .markdown import report_markdown
from .markdown import table as markdown_table
from .page import report_html
from .schema import to_report_json, without_paths
from .view import View
from .words import figure, markdown

if TYPE_CHECKING:
    from ..hardening.run import HardenResult


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a report was written."""

    json: Path
    html: Path
    markdown: Path


def write_report(
    result: ProbeResult, folder: Path | str, *, pictures: Path | str | None = None
) -> ReportFiles:
    """Write `report.json`, `report.html` and `report.md` into a folder, each in one move.

    The same result gives the same bytes. A probe that is not finished gets a report that says so.

    Args:
        pictures: the folder that `SetLook.pictures` are relative to (the probe's); None leaves
            pictures out. A picture that is missing there becomes a placeholder.

    Raises:
        ExportError: the folder cannot be written to.
    """
    folder = Path(folder)
    files = ReportFiles(folder / "report.json", folder / "report.html", folder / "report.md")
    # All three are made before one is written: a mistake leaves the old report as it was.
    texts = {
        files.json: to_report_json(result, summarise(result).to_json()),
        files.html: report_html(result, Path(pictures) if pictures is not None else None),
        files.markdown: report_markdown(result),
    }
    for path, text in texts.items():
        write_text(path, text)
    return files


def curve_png(result: ProbeResult, path: Path | str) -> Path:
    """The curves of all attacks that train, as one PNG on white. Returns the path."""
    view = View(result)
    return draw_png([(attack, view.curves(attack)) for attack in view.curved], path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was done to a checkpoint, and what it is worth: hardening and probe in one."""

    plan: HardeningPlan
    training: Mapping[str, Any]
    probes: ProbeResult
    seconds: float
    warnings: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """For a reader: the run in a table, then the probe's report."""
        plan = self.plan
        rows = [
            ["Concepts", ", ".join(markdown(concept.name) for concept in plan.concepts)],
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
                rows.append([f"{markdown(name)}, first → last", " → ".join(ends)])
        if self.training.get("skipped_solves"):
            rows.append(["Skipped solves", str(self.training["skipped_solves"])])
        parts = ["## Hardening", markdown_table(["", ""], rows)]
        parts += [f"**Warning:** {markdown(warning)}" for warning in self.warnings]
        return "\n\n".join([*parts, report_markdown(self.probes)])

    def to_json(self) -> dict[str, Any]:
        """For a program: plan, training figures, and `report.json` under `probe`."""
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
    """Hardening and probe in one report. probes: of the checkpoint that `result` made."""
    return Report(
        plan=plan,
        training=training_summary(result.records),
        probes=probes,
        seconds=result.seconds,
        warnings=result.warnings,
    )


def write_text(path: Path, text: str) -> None:
    """Put a text in its place in one move; a crash leaves what was there before."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from None
