"""Curves as PNG files: a run's step records, and a probe's unsafe rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..run.records import StepRecord
from .curves import SERIES, Curve

# After Okabe and Ito's palette for all kinds of colour vision, darkened for white paper.
LIGHT = ("#b34700", "#0072b2", "#007a5a", "#8f4a7a", "#946200", "#2b7bba", "#5c5c5c", "#a3283f")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # matplotlib's names of svg.MARKERS
_LINES = ("-", "--", ":", "-.")
_MARGIN = 4  # percent of an axis on either side of the outermost points
_INK, _GRID = "#1b1f24", "#d0d7de"


def plot_records(records: Sequence[StepRecord], path: Path | str, *, warm_up: int = 0) -> Path:
    """Plot losses, q and the length of simulated runs over the outer steps. Returns the path."""
    from matplotlib.figure import Figure

    path = Path(path)
    steps = [record.step for record in records]
    simulated = [record for record in records if record.simulations]
    later = [record.step for record in simulated]
    figure = Figure(figsize=(8, 9), layout="constrained")
    harm, retain, q = figure.subplots(3, 1, sharex=True)

    harm.plot(steps, [record.harm for record in records], label="L_harm(θ)")
    harm.plot(later, [r.harm_after for r in simulated], linestyle="--",
              label="L_harm(θ*), after simulated fine-tuning")  # fmt: skip
    harm.set_ylabel("harm loss (lower: safer)")
    retain.plot(steps, [record.retain for record in records], color="tab:green")
    retain.set_ylabel("L_retain (lower: less has changed)")
    q.plot(later, [record.q for record in simulated], color="tab:red")
    q.set_ylabel("q (1: nothing came back)", color="tab:red")
    q.set_ylim(0, max([1.05, *(1.05 * (record.q or 0) for record in simulated)]))
    q.set_xlabel("outer step")
    length = q.twinx()
    lengths = [sum(s.steps for s in r.simulations) / len(r.simulations) for r in simulated]
    length.step(later, lengths, where="mid", color="tab:gray", alpha=0.7)
    length.set_ylim(0, 1.25 * max([1.0, *lengths]))
    length.set_ylabel("inner steps", color="tab:gray")
    for axes in (harm, retain, q):
        axes.grid(alpha=0.3)
        if 0 < warm_up < len(steps):
            axes.axvline(warm_up + 0.5, color="black", linewidth=0.8, linestyle=":")
    harm.legend(loc="best")
    harm.set_title("Hardening" + (" (dotted: end of the warm-up)" if warm_up > 0 else ""))
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path


def plot_curves(panels: Sequence[tuple[str, Sequence[Curve]]], path: Path | str) -> Path:
    """Draw all curves as one picture on white, one panel per attack. Returns the path."""
    from matplotlib.figure import Figure

    path = Path(path)
    across = min(3, max(1, len(panels)))
    down = max(1, -(-len(panels) // across))
    figure = Figure(figsize=(4.2 * across, 3.1 * down + 0.6), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for panel, (title, curves) in zip(axes, panels, strict=False):
        _draw_curves(panel, curves)
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


def _draw_curves(axes: Any, curves: Sequence[Curve]) -> None:
    for curve in curves:
        colour = LIGHT[curve.index % SERIES]
        percents = [100 * rate for rate in curve.rates]
        lows, highs = ([100 * value for value in band] for band in (curve.lows, curve.highs))
        axes.fill_between(curve.steps, lows, highs, color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            curve.steps, percents, color=colour, linewidth=1.8, markersize=5,
            marker=_MARKERS[curve.index % len(_MARKERS)],
            linestyle=_LINES[curve.index // SERIES % len(_LINES)], gid=f"model-{curve.index}",
            clip_on=False, zorder=3,
        )  # fmt: skip
        if curve.broken_points:  # a broken model's rate says nothing about safety
            axes.plot(
                [step for step, _ in curve.broken_points],
                [100 * rate for _, rate in curve.broken_points],
                linestyle="", marker="x", markersize=9, color=_INK, clip_on=False, zorder=4,
            )  # fmt: skip
    axes.set_ylim(-_MARGIN, 100 + _MARGIN)  # markers at the ends lie inside
    steps = sorted({step for curve in curves for step in curve.steps})
    if len(steps) > 1:
        room = (steps[-1] - steps[0]) * _MARGIN / 100
        axes.set_xlim(steps[0] - room, steps[-1] + room)
    axes.set_yticks([0, 25, 50, 75, 100], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("fine-tuning step", color=_INK)
    axes.set_ylabel("unsafe rate (high is bad)", color=_INK)
    axes.tick_params(colors=_INK, length=3)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GRID)
