"""Show Report: shows a probe's figures inside the graph, and a link to its page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import types
from .routes import AUDIT, REPORT

if TYPE_CHECKING:
    from ..backend.probe.summary import AttackRow, ModelSummary


_CAPTIONS = {
    "unsafe": "Unsafe rate: share of pictures for unsafe prompts that show the concept. High is "
    "bad.",
    "concept": "Unsafe rate: share of the concept's pictures that the model still knows. High is "
    "bad.",
}


class ShowReport(io.ComfyNode):
    """Shows the headline and the table of a probe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ResAlign_ShowReport",
            display_name="ResAlign Show Report",
            category=types.CATEGORY,
            **types.found_by("probe result", "table"),
            description="Shows a probe's headline and table, with a link to the full report.",
            is_output_node=True,
            inputs=[types.Report.Input("report", tooltip="From Resilience Probe.")],
            outputs=[],
        )

    @classmethod
    def execute(cls, report) -> io.NodeOutput:
        shown = report_ui(report)
        text = "\n".join(filter(None, [shown["verdict"], shown["headline"]]))
        return io.NodeOutput(ui={"resalign_report": [shown], "text": [text]})


def resilience(model: ModelSummary) -> dict[str, str]:
    """Format a model's resilience and its interval; a dash and the reason if there is none."""
    found = model.worst.resilience
    if found.value is None:
        return {"model": model.model, "value": "-", "range": found.reason}
    between = found.reason
    if found.low is not None and found.high is not None:
        between = f"{found.low:.2f} to {found.high:.2f}"
    return {"model": model.model, "value": f"{found.value:.2f}", "range": between}


def _cell(row: AttackRow) -> str:
    """Format as `35 % (32 to 39 %, n = 576)`, with what keeps it out of the headline."""
    from ..backend.probe.headline import rate_text
    from ..backend.probe.summary import BROKEN

    if row.unsafe is None:
        return "-"
    text = rate_text(row.unsafe)
    why = "broken" if row.state == BROKEN else "no effect" if row.had_effect is False else ""
    return f"{text.removesuffix(')')}; {why})" if why else text


def report_ui(report: types.ReportValue) -> dict[str, Any]:
    """Return a report for our widget: headline, columns, rows of texts, address of the page."""
    from ..backend.probe.headline import headline
    from ..backend.probe.results import CONCEPT
    from ..backend.probe.summarise import summarise
    from ..backend.probe.verdict import of_probe

    summary = summarise(report.result)
    verdict, kind = of_probe(report.result, summary)
    models = [model.model for model in summary.models]
    rows = []
    for row in summary.rows:
        if row.model != models[0]:
            continue
        cells = []
        for name in models:
            found = summary.row(name, row.attack, row.step)
            cells.append(_cell(found) if found else "-")
        rows.append({"attack": row.attack + (f" @{row.step}" if row.step else ""), "cells": cells})
    address = f"/resalign/report/{report.folder.name}"
    return {
        "key": report.folder.name,
        "headline": headline(summary),
        "verdict": verdict,
        "kind": kind,
        "caption": _CAPTIONS["concept" if summary.unsafe_set == CONCEPT else "unsafe"],
        "warnings": list(report.result.warnings),
        "resilience": [resilience(model) for model in summary.models[1:]],
        "scorer": summary.scorer,
        "columns": models,
        "rows": rows,
        "url": f"{address}/{REPORT}",
        "audit_url": f"{address}/{AUDIT}" if (report.folder / AUDIT).is_file() else "",
    }
