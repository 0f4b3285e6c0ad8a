"""Curves of the unsafe rate over the steps of an attack: SVG for the page, PNG for hosts.

The SVG holds no colour of its own: strokes and fills are the page's custom properties (`--series-0`
and so on), so that one drawing serves light and dark; text stays text, in the page's font. Words
of users are not drawn: the page has them around the drawing. Same input, same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .markup import Markup

SERIES = 8  # colours of the palette; from there on they repeat with another line
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", ":", "-.")
# After Okabe and Ito's palette for all kinds of colour vision, darkened for white paper.
LIGHT = ("#b34700", "#0072b2", "#007a5a", "#8f4a7a", "#946200", "#2b7bba", "#5c5c5c", "#a3283f")
_INK, _GRID = "#010203", "#040506"
_STAND_INS = {_INK: "var(--ink)", _GRID: "var(--line)"}
_STAND_INS |= {f"#0a0b{i:02x}": f"var(--series-{i})" for i in range(SERIES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One model under one attack: rates and their intervals by step, from 0 to 1.

    index: the model's place in the report, which is its colour and marker everywhere.
    """

    name: str
    index: int
    steps: tuple[int, ...]
    rates: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


def curve_svg(curves: Sequence[Curve], name: str, label: str) -> Markup:
    """A drawing to be put into a page.

    name: of letters, digits and `-`, unique in the page; all ids in the drawing begin with it.
    label: what it shows, for those who cannot see it; plain text.
    """
    from html import escape

    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure = Figure(figsize=(4.2, 2.9), layout="constrained")
        colours = [f"#0a0b{i:02x}" for i in range(SERIES)]
        _draw(figure.add_subplot(), curves, colours, _INK, _GRID)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (?:[\w ]*? )?([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    for stand_in, real in _STAND_INS.items():
        text = text.replace(stand_in, real)
    _, _, inner = text.partition(">")
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    return Markup(
        f'<svg role="img" aria-label="{escape(label)}" viewBox="{box[1]}" class="curve" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{inner}'
    )


def marker_svg(index: int) -> Markup:
    """The line and marker of a model, for the legend beside its name."""
    shapes = {
        "o": '<circle cx="14" cy="7" r="4"/>',
        "s": '<path d="M10 3h8v8h-8z"/>',
        "^": '<path d="M14 2l5 9h-10z"/>',
        "D": '<path d="M14 2l5 5-5 5-5-5z"/>',
        "v": '<path d="M14 12l5-9h-10z"/>',
        "P": '<path d="M12 2h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
        "X": '<path d="M11 2l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z"/>',
        "*": '<path d="M14 1l1.6 4h4.4l-3.6 2.7 1.4 4.3-3.8-2.7-3.8 2.7 1.4-4.3-3.6-2.7h4.4z"/>',
    }
    dashes = ("", "6 3", "2 2", "7 2 2 2")[index // SERIES % len(LINES)]
    return Markup(
        f'<svg class="key" viewBox="0 0 28 14" aria-hidden="true" '
        f'style="color:var(--series-{index % SERIES})" fill="currentColor">'
        f'<path d="M0 7h28" stroke="currentColor" stroke-width="2" stroke-dasharray="{dashes}"/>'
        f"{shapes[MARKERS[index % len(MARKERS)]]}</svg>"
    )


def draw_png(panels: Sequence[tuple[str, Sequence[Curve]]], path: Path | str) -> Path:
    """All curves as one picture on white, one panel per attack. Returns the path."""
    from matplotlib.figure import Figure

    path = Path(path)
    across = min(3, max(1, len(panels)))
    down = max(1, -(-len(panels) // across))
    figure = Figure(figsize=(4.2 * across, 3.1 * down + 0.6), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for panel, (title, curves) in zip(axes, panels, strict=False):
        _draw(panel, curves, LIGHT, "#1b1f24", "#d0d7de")
        panel.set_title(title, fontsize=10, parse_math=False)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    lines = {line.get_gid(): line for panel in axes for line in panel.get_lines()}
    names = {f"model-{curve.index}": curve.name for _, curves in panels for curve in curves}
    if names:
        legend = figure.legend(
            [lines[gid] for gid in names], list(names.values()),
            loc="outside lower center", ncols=min(4, len(names)), frameon=False,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
    return path


def _draw(axes: Any, curves: Sequence[Curve], colours: Sequence[str], ink: str, grid: str) -> None:
    for curve in curves:
        colour = colours[curve.index % SERIES]
        percents = [100 * rate for rate in curve.rates]
        lows, highs = ([100 * value for value in band] for band in (curve.lows, curve.highs))
        axes.fill_between(curve.steps, lows, highs, color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            curve.steps, percents, color=colour, linewidth=1.8, markersize=5,
            marker=MARKERS[curve.index % len(MARKERS)],
            linestyle=LINES[curve.index // SERIES % len(LINES)], gid=f"model-{curve.index}",
            clip_on=False, zorder=3,
        )  # fmt: skip
    axes.set_ylim(0, 100)
    steps = sorted({step for curve in curves for step in curve.steps})
    if len(steps) > 1:
        axes.set_xlim(steps[0], steps[-1])
    axes.set_yticks([0, 25, 50, 75, 100], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("fine-tuning step", color=ink)
    axes.set_ylabel("unsafe rate", color=ink)
    axes.tick_params(colors=ink, length=3)
    axes.grid(color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(grid)
