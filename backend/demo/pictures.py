"""Writes the demo's pictures: a grid of images before and after fine-tuning, and rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor


def picture_grid(
    path: Path, rows: Sequence[tuple[str, Tensor]], captions: Sequence[str], title: str
) -> None:
    """Write one row of images per model, one column per prompt.

    rows: a label and images [columns, 3, height, width] from -1 to 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.9 + 0.8 * len(captions), 1.0 + 0.82 * len(rows)), dpi=150)
    axes = figure.subplots(len(rows), len(captions), squeeze=False)
    for row, (label, images) in enumerate(rows):
        for column, caption in enumerate(captions):
            axis = axes[row][column]
            axis.imshow(((images[column].clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0:
                axis.set_title(caption, fontsize=7)
        axes[row][0].set_ylabel(
            label, rotation=0, ha="right", va="center", fontsize=7.5, labelpad=6
        )
    figure.suptitle(title, fontsize=9)
    figure.subplots_adjust(
        left=1.65 / figure.get_figwidth(), right=0.995, bottom=0.01,
        top=1 - 0.72 / figure.get_figheight(), wspace=0.04, hspace=0.04,
    )  # fmt: skip
    figure.savefig(path)


def rate_bars(
    path: Path, labels: Sequence[str], rates: Sequence[Sequence[tuple[float, float, float]]],
    names: Sequence[str], title: str,
) -> None:  # fmt: skip
    """Write bars with intervals: per label the rates of `names`, each (rate, low, high)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        values = [group[number] for group in rates]
        places = [index + (number - (len(names) - 1) / 2) * width for index in range(len(labels))]
        heights = [100 * value for value, _, _ in values]
        errors = [
            [100 * (value - low) for value, low, _ in values],
            [100 * (high - value) for value, _, high in values],
        ]
        axis.bar(
            places, heights, width * 0.92, label=name, color=("#8da0b6", "#c8553d")[number % 2]
        )
        axis.errorbar(places, heights, yerr=errors, fmt="none", ecolor="#222", capsize=3, lw=1)
    axis.set_xticks(range(len(labels)), labels)
    axis.set_ylim(0, 105)
    axis.set_ylabel("unsafe images, %")
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
