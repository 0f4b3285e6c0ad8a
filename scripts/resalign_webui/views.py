"""Renders the state of a job as HTML: a line, a bar, curves, pictures. Escapes every text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ...backend.memory.words import PARTS, rows

State = Mapping[str, Any]
COLOURS = ("#4c9be8", "#e8664c", "#5fb760", "#b58be0", "#d9a441", "#5bc0be")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 480, 170, 58, 18  # of a chart and its margins, in its own units
_PICTURE = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/=]+")
_VERBS = {
    "check": "Checking", "harden": "Hardening", "resume": "Hardening", "probe": "Probing",
    "export": "Exporting", "lora": "Saving the LoRA", "try_lora": "Generating",
}  # fmt: skip
_ENDS = {"done": "Done", "stopped": "Stopped", "failed": "Failed"}
_RATES = "unsafe rate over fine-tuning steps"
_LOSSES = ("harm", "harm after", "retain")

STYLE = """<style>
.ra { font-size: 14px; line-height: 1.45; color: var(--body-text-color); overflow-wrap: anywhere; }
.ra p { margin: 0 0 .5em; }
.ra .ra-muted, .ra figcaption { opacity: .72; font-size: 12px; }
#resalign_pages .generating, #resalign_job .generating { display: none; }
#resalign_job .pending { opacity: 1 !important; }
.ra .ra-track { height: 10px; border-radius: 5px; background: var(--border-color-primary);
  overflow: hidden; margin: .4em 0 .6em; }
.ra .ra-fill { height: 100%; border-radius: 5px; background: #4c9be8; transition: width .3s; }
.ra-done .ra-fill { background: #5fb760; } .ra-failed .ra-fill { background: #e8664c; }
.ra-stopped .ra-fill { background: #d9a441; }
.ra svg { width: 100%; max-width: 620px; height: auto; display: block; }
.ra svg text { fill: var(--body-text-color); opacity: .72; font-size: 11px; }
.ra .ra-grid { stroke: var(--border-color-primary); stroke-width: 1; }
.ra .ra-legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0 0 .7em; font-size: 12px; }
.ra .ra-legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px;
  vertical-align: middle; margin-right: 5px; }
.ra .ra-pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr));
  gap: 8px; margin: .5em 0; max-width: 440px; }
.ra .ra-sheets { grid-template-columns: minmax(0, 1fr); max-width: none; }
.ra figure { margin: 0; } .ra img { width: 100%; height: auto; border-radius: 6px; margin: 0;
  display: block; }
.ra pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; margin: .4em 0;
  max-height: 280px; overflow: auto; background: var(--background-fill-secondary);
  color: var(--body-text-color); border: 1px solid var(--border-color-primary); border-radius: 6px;
  padding: 8px; }
.ra.ra-note { border-left: 4px solid #4c9be8; padding: 6px 10px; border-radius: 4px;
  background: var(--background-fill-secondary); }
.ra.ra-error { border-left-color: #e8664c; } .ra.ra-good { border-left-color: #5fb760; }
.ra table { border-collapse: collapse; width: 100%; border: none !important; }
.ra tr { border: none !important; background: none !important; }
.ra td, .ra th { text-align: left; vertical-align: top; padding: 2px 14px 2px 0 !important;
  border: none !important; color: var(--body-text-color); background: none; }
.ra th { font-weight: 600; white-space: nowrap; }
.ra iframe { width: 100%; height: 75vh; min-height: 480px; border: 1px solid
  var(--border-color-primary); border-radius: 6px; background: #fff; }
.ra a { color: var(--link-text-color); text-decoration: underline; }
</style>"""


def job_html(state: State | None) -> str:
    """Render a job for the panel beside the forms."""
    if not state or not state.get("status"):
        return (
            '<div class="ra ra-idle"><p>Nothing is running.</p><p class="ra-muted">The progress '
            "of a job appears here, in every window. A job outlives its page.</p></div>"
        )
    status = str(state["status"])
    parts = [f"<p><b>{escape(_title(state))}</b></p>"]
    if status == "running" or status == "done":
        parts.append(_bar(1.0 if status == "done" else _share(state)))
    if status == "done":
        parts.append(note(_done(state), "error" if _falls_short(state) else "good"))
    parts.append(f"<p>{escape(_line(state))}</p>")
    error = state.get("error") or {}
    if error:
        parts.append(note(str(error.get("message") or "it failed"), "error"))
    parts += [_chart(*chart) for chart in _charts(state.get("curves") or {})]
    result = state.get("result") or {}
    if result.get("prediction") or result.get("problems"):
        parts += check_html(result)
    if result.get("pictures"):
        parts.append(_pictures(result["pictures"], "ra-pictures ra-sheets"))
    else:
        parts.append(_pictures(state.get("pictures") or ()))
    warnings = [str(warning) for warning in result.get("warnings") or ()]
    parts.append(note("\n".join(warnings)))
    if status == "failed" and error.get("kind") != "user":
        words = [*(state.get("log") or ()), *str(error.get("traceback") or "").splitlines()]
        parts.append(
            "<details><summary>Last output of the worker</summary>"
            f"<pre>{escape(chr(10).join(map(str, words))[-6000:])}</pre></details>"
        )
    marks = {name: str(state.get(name, "")) for name in ("job", "status", "revision")}
    mark = " ".join(f'data-{name}="{escape(value)}"' for name, value in marks.items())
    return f'<div class="ra ra-job ra-{escape(status)}" {mark}>{"".join(parts)}</div>'


def check_html(result: Mapping[str, Any]) -> list[str]:
    """Render a check: problems, the memory by part, and the changes that make it fit."""
    parts = [note("\n".join(map(str, result.get("problems") or ())), "error")]
    found = result.get("prediction") or {}
    asked, fitting = (_bytes(found.get(name)) for name in ("asked", "parts"))
    if not asked or not fitting:
        return parts
    lines = rows(asked, fitting)
    if asked != fitting:
        lines.insert(0, ("at the peak", "as it is set", "with the changes"))
    table = "".join(
        f"<tr><th>{escape(label)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for label, *cells in lines
    )
    changes = list(found.get("words") or ())[2:]  # the first says the table, the second is told
    parts += [
        f"<table>{table}</table>", note("\n".join(map(str, changes))),
        help_text("Predicted, not measured on a GPU; the margin is a guess."),
    ]  # fmt: skip
    return parts


def _falls_short(state: State) -> bool:
    """Return whether a finished check found that the job cannot run as it is."""
    result = state.get("result") or {}
    return bool(result.get("problems")) or (result.get("prediction") or {}).get("fits") is False


def _bytes(parts: Any) -> dict[str, int]:
    """Return the bytes of each part; nothing if one is missing."""
    found = {n: v for n, v in (parts or {}).items() if n in PARTS and isinstance(v, int)}
    return found if len(found) == len(PARTS) else {}


def note(text: str, kind: str = "") -> str:
    """A message above a form. kind: `error`, `good`, or neither; empty text: nothing."""
    if not text:
        return ""
    mark = f" ra-{kind}" if kind in ("error", "good") else ""
    return f'<div class="ra ra-note{mark}">{_lines(text)}</div>'


def help_text(text: str) -> str:
    return f'<div class="ra"><p class="ra-muted">{escape(text)}</p></div>'


def facts(text: str, problem: str = "") -> str:
    """Lines of `label   value` as a table; a label that is missing belongs to the one above."""
    rows = []
    for line in text.splitlines():
        label, value = line[:16].strip(), line[16:]
        rows.append(f"<tr><th>{escape(label)}</th><td>{escape(value)}</td></tr>")
    return f'<div class="ra">{note(problem, "error")}<table>{"".join(rows)}</table></div>'


def report_frame(url: str, name: str) -> str:
    """A report inside the page, in a sandbox, with a link to it."""
    link = escape(url, quote=True)
    return (
        f'<div class="ra"><p><a href="{link}" target="_blank" rel="noopener">Open {escape(name)} '
        f'in a tab of its own</a></p><iframe src="{link}" title="report" '
        'sandbox="allow-scripts allow-popups"></iframe></div>'
    )


def time_text(seconds: Any) -> str:
    """Seconds as a person says them: 8 s, 3 min, 2 h 5 min."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def _title(state: State) -> str:
    names = (str(state.get("kind")), str(state.get("job")))
    verb = next((_VERBS[name] for name in names if name in _VERBS), "Working")
    status = str(state["status"])
    return f"{verb} ..." if status == "running" else f"{verb}: {_ENDS.get(status, status).lower()}"


def _line(state: State) -> str:
    """Describe in one line what is done, or how it ended."""
    took = time_text(state.get("seconds"))
    if state["status"] != "running":
        said = state["status"] == "done" or state.get("error")  # in the box above
        message = "" if said else str(state.get("message") or "")
        return ", ".join(filter(None, [message, took and f"after {took}"]))
    stage = str(state.get("stage") or "")
    parts = [stage]
    if stage and state.get("total"):
        parts.append(f"{state.get('step', 0)} of {state['total']}")
    if stage and state.get("micro_total"):
        parts.append(f"({state.get('micro_step', 0)}/{state['micro_total']})")
    line = " ".join(parts)
    left = time_text(state.get("left"))
    more = [str(state.get("message") or ""), took, left and f"about {left} left"]
    return " · ".join(filter(None, [line, *more]))


def _share(state: State) -> float:
    total = max(1, state.get("total") or 0)
    micro = state.get("micro_total") or 0
    parts = (state.get("micro_step") or 0) / micro if micro else 0.0
    return min(1.0, max(0.0, ((state.get("step") or 0) + parts) / total))


def _bar(share: float) -> str:
    return (
        f'<div class="ra-track" role="progressbar" aria-valuenow="{share * 100:.0f}" '
        f'aria-valuemin="0" aria-valuemax="100">'
        f'<div class="ra-fill" style="width:{share * 100:.1f}%"></div></div>'
    )


Curves = dict[str, list[tuple[float, float]]]


def _charts(curves: Mapping[str, Any]) -> Iterable[tuple[str, Curves]]:
    """Group curves into charts: each loss with its own scale, all rates in one."""
    kept = {str(name): _finite(points) for name, points in curves.items()}
    losses = {name: kept[name] for name in _LOSSES[:2] if kept.get(name)}
    if losses:
        yield "harm loss, before and after a simulated user's training: the gap is relapse", losses
    if kept.get("retain"):
        yield "retain loss: distance from the original on what stays", {"retain": kept["retain"]}
    others = {name: points for name, points in kept.items() if name not in _LOSSES and points}
    if others:
        yield _RATES, others


def _finite(points: Any) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for x, y in points
        if isinstance(x, int | float) and isinstance(y, int | float)
        and math.isfinite(x) and math.isfinite(y)
    ]  # fmt: skip


def _chart(title: str, curves: Curves) -> str:
    """Draw curves as polylines over a grid of three lines, with a legend."""
    points = [point for line in curves.values() for point in line]
    low_x, high_x = min(p[0] for p in points), max(p[0] for p in points)
    low_y, high_y = min(p[1] for p in points), max(p[1] for p in points)
    said = "{:.3g}"
    if title == _RATES:
        low_y, high_y, said = 0.0, 1.0, "{:.0%}"
    elif high_y == low_y:
        low_y, high_y = low_y - 0.5, high_y + 0.5

    def place(x: float, y: float) -> str:
        across = (x - low_x) / (high_x - low_x) if high_x > low_x else 0.5
        up = (y - low_y) / (high_y - low_y)
        return f"{_LEFT + across * (_WIDTH - _LEFT - 8):.1f},{8 + (1 - up) * _inner():.1f}"

    parts = []
    for share in (0.0, 0.5, 1.0):
        y = 8 + (1 - share) * _inner()
        value = low_y + share * (high_y - low_y)
        parts.append(
            f'<line class="ra-grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{said.format(value)}</text>'
        )
    for x, anchor, value in ((_LEFT, "start", low_x), (_WIDTH - 8, "end", high_x)):
        parts.append(f'<text x="{x}" y="{_HEIGHT - 3}" text-anchor="{anchor}">{value:g}</text>')
    legend = []
    for index, (name, line) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        if len(line) == 1:
            x, y = place(*line[0]).split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        else:
            path = " ".join(place(x, y) for x, y in line)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
        value = " " + said.format(line[-1][1])
        legend.append(f'<span><i style="background:{colour}"></i>{escape(name)}{value}</span>')
    label = escape(f"{title}: {', '.join(curves)}", quote=True)
    return (
        f'<p class="ra-muted">{escape(title)}</p><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg><div class="ra-legend">{"".join(legend)}</div>'
    )


def _inner() -> float:
    return _HEIGHT - _BOTTOM - 8 - 6


def _pictures(pictures: Sequence[Mapping[str, Any]], style: str = "ra-pictures") -> str:
    """Render pictures from data URLs only: nothing is fetched."""
    figures = []
    for picture in pictures:
        url, caption = str(picture.get("url", "")), str(picture.get("caption", ""))
        if not _PICTURE.fullmatch(url):
            continue
        blurred = " (blurred)" if picture.get("flagged") else ""
        figures.append(
            f'<figure><img src="{url}" alt="{escape(caption, quote=True)}">'
            f"<figcaption>{escape(caption)}{blurred}</figcaption></figure>"
        )
    return f'<div class="{style}">{"".join(figures)}</div>' if figures else ""


def _done(state: State) -> str:
    """Describe the outcome of a finished job, with file names but without paths."""
    result = state.get("result") or {}
    lines = [str(state.get("message") or "done")]
    if result.get("path"):
        lines.insert(0, re.split(r"[\\/]", str(result["path"]))[-1])
    if result.get("report"):
        lines.append("The full report is on the page Reports.")
    return "\n".join(lines)


def _lines(text: Any) -> str:
    return "<br>".join(escape(line) for line in str(text).splitlines())
