"""How long work tells its caller what it does, and how the caller stops it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture worth showing: its file, what it was asked to show, and whether it was flagged.

    Blur the flagged ones until somebody asks for them.
    """

    file: str
    caption: str
    flagged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One moment of a long piece of work.

    `step` counts whole units of `stage` from 1 to `total` (0 before the first is done);
    `micro_step` of `micro_total` counts the parts of the unit under way. `values` are figures
    worth showing (`harm`, `harm_after`, `retain`, `residual`, ...), `message` one short line.
    A probe adds a point of its curves whenever it has one: `labels` say of what (`model`,
    `attack`, `seed`, `at`), `values` the rates, `pictures` what was drawn.
    """

    stage: str
    step: int
    total: int
    micro_step: int = 0
    micro_total: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()


class ProgressCallback(Protocol):
    """Called after each step and micro-step, on the thread that runs the recipe.

    Raise from it to stop the run: whatever is raised passes through the backend untouched
    (ComfyUI's interrupt included, which is no `Exception`), and no half-written file stays.
    """

    def __call__(self, progress: Progress, /) -> None: ...


def silent(progress: Progress, /) -> None:
    """The callback for nobody."""
