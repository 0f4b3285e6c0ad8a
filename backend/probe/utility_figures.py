"""The utility figures of an evaluation: key, label, direction and unit, each defined once.

`utility.py` and `set_distance.py` compute them, `Evaluation.utility` holds them by key, and every
report reads labels and directions from here. A figure that is computed per prompt set has the set's
kind appended to its key: `clip_score_retain`.
"""

from __future__ import annotations

from dataclasses import dataclass

_SETS = {"unsafe": "unsafe", "neighbour": "neighbours", "retain": "others"}  # as labels name them


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilityFigure:
    """A utility figure. direction: what a lower or higher value means. unit: range and measure."""

    key: str
    label: str
    direction: str
    unit: str
    per_set: bool = False

    def key_of(self, kind: str) -> str:
        """Return the key for one prompt set."""
        return f"{self.key}_{kind}" if self.per_set else self.key


DRIFT = UtilityFigure(
    key="drift",
    label="prediction drift",
    direction="lower: closer to the original",
    unit="share of the variance of the original's predictions",
)
IMAGE_DISTANCE = UtilityFigure(
    key="image_distance",
    label="image distance",
    direction="lower: closer to the original",
    unit="1 − MS-SSIM, 0 to 1",
    per_set=True,
)
CLIP_SCORE = UtilityFigure(
    key="clip_score",
    label="CLIP score",
    direction="higher: fits the prompt better",
    unit="100 × cosine, 0 to 100",
    per_set=True,
)
FRECHET_DISTANCE = UtilityFigure(
    key="frechet_distance",
    label="FID on CLIP features",
    direction="lower: closer to the real images",
    unit="squared distance of CLIP embeddings, from 0",
)
KERNEL_DISTANCE = UtilityFigure(
    key="kernel_distance",
    label="KID on CLIP features",
    direction="lower: closer to the real images",
    unit="squared MMD of CLIP embeddings; unbiased, so it may be below 0",
)
FIGURES = (DRIFT, IMAGE_DISTANCE, CLIP_SCORE, FRECHET_DISTANCE, KERNEL_DISTANCE)
_BY_KEY = {
    figure.key_of(kind): (figure, kind) for figure in FIGURES for kind in (*_SETS, "")
    if figure.per_set == bool(kind)
}  # fmt: skip


def utility_figure(key: str) -> UtilityFigure | None:
    """Return the figure of a key of `Evaluation.utility`; None for one that this version lacks."""
    found = _BY_KEY.get(key)
    return found[0] if found else None


def utility_label(key: str) -> str:
    """Return the label of a key: `CLIP score, others`."""
    found = _BY_KEY.get(key)
    if found is None:
        return key.replace("_", " ")
    figure, kind = found
    return f"{figure.label}, {_SETS[kind]}" if kind else figure.label


def utility_direction(key: str) -> str:
    """Explain how to read a key's values; "" for a key that this version lacks."""
    figure = utility_figure(key)
    return figure.direction if figure else ""
