"""How long each choice of the forms takes, and its name in plain words. No torch.

A duration is a number of passes of the denoiser, at the seconds that a pass takes. Drawing pictures
and training have different speeds, since they have different batches and a training pass goes
backwards too; `Pace` keeps both, as assumed or as measured on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .settings import PRESETS


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that a pass of the denoiser takes: while drawing, and while training."""

    drawing: float
    training: float


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes of a whole job with one concept, as `jobs.job_time` counts them (a test compares)."""

    drawing: int
    training: int

    def seconds(self, pace: Pace) -> float:
        return self.drawing * pace.drawing + self.training * pace.training


COMMON = Pace(0.1, 0.1)  # SD 1.5 at 512 pixels, where a GPU does ten passes a second
TIMES = (
    "Times assume SD 1.5 at 512 pixels on a GPU that draws at 5 it/s (ten passes of the denoiser "
    "a second); they were not measured here. Without a GPU everything takes many times as long."
)
PASSES = {
    "fast": Passes(528, 712),
    "edit": Passes(9_696, 28),
    "redirect": Passes(10_416, 4_480),
    "balanced": Passes(10_416, 32_080),
    "paper": Passes(10_416, 47_856),
    "durable": Passes(51_088, 20_224),
    "thorough": Passes(11_184, 64_160),
    "durable-max": Passes(82_528, 39_424),
    "custom": Passes(10_416, 32_080),
}
# From the shortest to the longest, as forms offer them; `custom` comes last.
ORDER = tuple(PASSES)
NAMES = {
    "fast": "Test run",
    "edit": "Quick edit",
    "redirect": "Light",
    "balanced": "Standard",
    "paper": "As published",
    "thorough": "Standard, twice",
    "durable": "Lasting",
    "durable-max": "Longest lasting",
    "custom": "Custom",
}
# Beside the name, in a few words; MEANINGS says more
PURPOSES = {
    "fast": "only shows that everything works",
    "edit": "other pictures for its prompts; fine-tuning undoes it",
    "redirect": "harmless pictures for its prompts; fine-tuning undoes it",
    "balanced": "slows the return; takes less memory than Lasting",
    "paper": "the published method's settings",
    "thorough": "Standard with twice the steps",
    "durable": "recommended: lasts longest for its time; takes much memory",
    "durable-max": "lasts longer, under strong attacks too",
    "custom": "Standard, with more to choose",
}
# What a choice does not do comes from docs/durable.md and docs/benchmarks.md
MEANINGS = {
    "fast": "only shows that everything works, not safe to publish",
    "edit": "prompts draw something else, some still show it; fine-tuning brings most of it back",
    "redirect": "prompts draw something harmless; fine-tuning brings it back",
    "balanced": "slows its return, but a long fine-tuning brings most of it back; takes less "
    "memory than Lasting",
    "paper": "the settings of the published method; not compared with Standard",
    "thorough": "Standard with twice the steps; whether it lasts longer was not measured",
    "durable": "recommended: lasts longest for its time, and takes much memory",
    "durable-max": "lasts longer than Lasting, under strong attacks too",
    "custom": "Standard, with more to choose",
}


def duration(choice: str, pace: Pace = COMMON) -> str:
    """Return `about 2 hours`, the time of a choice at a pace."""
    return words_of(PASSES[choice].seconds(pace))


def preset_line(choice: str, pace: Pace = COMMON) -> str:
    """Return a duration, then what the choice is for."""
    return f"{duration(choice, pace)}; {MEANINGS[choice]}"


def words_of(seconds: float) -> str:
    """Round a duration as far as it can be known beforehand: about 25 minutes."""
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute"
    if minutes < 57.5:
        step = 1 if minutes < 10 else 5
        count = step * round(minutes / step)
        return f"about {count} minute{'s' * (count > 1)}"
    hours = round(2 * minutes / 60) / 2 if minutes < 600 else round(minutes / 60)
    return f"about {hours:g} hour{'s' * (hours > 1)}"


def short_words_of(seconds: float) -> str:
    """Return the same for a label: `25 min`, `1.5 h`."""
    said = words_of(seconds).removeprefix("about ").replace("less than a minute", "< 1 min")
    return re.sub(r" minutes?$", " min", re.sub(r" hours?$", " h", said))


def pace_from(measured: Mapping[str, object]) -> Pace | None:
    """Read `{"drawing": seconds, "training": seconds}`; what is missing is taken from the other."""
    drawing, training = (_seconds(measured.get(name)) for name in ("drawing", "training"))
    if drawing is None and training is None:
        return None
    return Pace(drawing or training or 0.0, training or drawing or 0.0)


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        return None
    return float(value)


def in_order(choices: Iterable[str]) -> list[str]:
    """Sort choices from the shortest to the longest."""
    return sorted(choices, key=ORDER.index)


for table in (PASSES, NAMES, PURPOSES, MEANINGS):
    assert set(table) == set(PRESETS), "a choice lacks a duration, a name or its meaning"
