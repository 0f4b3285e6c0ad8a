"""A job's progress in words, for the line that a page shows while it runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from ..plan.methods import FACTS
from ..plan.removal import NOTHING
from ..progress import Progress

_STAGES = {
    "encoding": "reading pictures", "checking images": "checking pictures",
    "preview": "drawing a preview", "probing": "fine-tuning and measuring",
    "generating": "drawing", "sampling": "drawing", "hash": "computing the file's hash",
    "harden": "unlearning", "predicting": "predicting with the original",
}  # fmt: skip
_SETS = {"retain set": "what must stay"}
_FORGET = "forget set of "


def title_of(progress: Progress, *, resisting: bool = False) -> str:
    """Return what is done, without numbers: `drawing example pictures of weapons`."""
    if progress.stage == "synthesising":
        what = _SETS.get(progress.message, progress.message.removeprefix(_FORGET))
        count = f"{progress.at_once} " if progress.at_once > 1 else ""
        return f"drawing {count}example pictures" + (f" of {what}" if what else "")
    if progress.stage == "harden" and resisting:
        return FACTS["resalign"].doing
    if progress.stage in ("generating", "sampling") and progress.at_once > 1:
        return f"drawing {progress.at_once} pictures"
    for method, facts in FACTS.items():
        if progress.stage.startswith("stage ") and progress.stage.endswith(method):
            return facts.doing
    return _STAGES.get(progress.stage, progress.stage)


def line_of(progress: Progress, title: str, stage: tuple[int, int] | None = None) -> str:
    """Return the line of a running job: what, how far, and in which of its stages.

    stage: its number and how many there are; None for work that is not one of them.
    """
    at_once = (
        progress.at_once > 1 and progress.micro_total > 0
        and progress.stage in ("synthesising", "generating", "sampling")
    )  # fmt: skip
    if at_once:
        line = title + " at once"
        if progress.total > progress.at_once:
            line += f", {progress.step} of {progress.total} done"
        line += f": sampling step {progress.micro_step} of {progress.micro_total}"
    elif progress.total and progress.stage:
        line = f"{title} {progress.step} of {progress.total}"
    else:
        line = title
    if stage is not None and stage[1] > 1:
        line += f" (stage {stage[0]} of {stage[1]})"
    said = progress.message
    if progress.stage == "encoding":
        said = _SETS.get(said, said.removeprefix(_FORGET))
    if said and not _hides_message(progress.stage):
        line += f" · {said}"
    counted = at_once or progress.stage == "probing"  # whose message counts them
    if progress.micro_total and not counted:
        line += f" · {progress.micro_step}/{progress.micro_total}"
    return line


def _hides_message(stage: str) -> bool:
    """Return whether a stage's messages are names of sets or of simulated users.

    A method that runs before the last one reports as `stage 1-resalign`.
    """
    return stage in ("synthesising", "harden") or stage.startswith("stage ")


_TIME_OF_NOTE = re.compile(r"^expected {2,}about [^;]* left\b.*")
_TIME_IN_NOTE = re.compile(r"; (about [^;]* left\b.*|the time is known after .*)")


def without_time(notes: Iterable[str]) -> list[str]:
    """Return a run's lines of `opening.py` without the time that they expect."""
    kept = [note for note in notes if not _TIME_OF_NOTE.match(note)]
    return [_TIME_IN_NOTE.sub("", note) if note.startswith("expected ") else note for note in kept]


NO_SHARE = "These losses do not tell how much is removed: a probe measures it."
SHARE_OF_LOSSES = (
    "This share is of losses. A probe counts what still shows the concept, and may find none long "
    "before the share is 100 %."
)


def chart_hint(
    removed: float | None, *, users: bool, trained: bool, ended: bool = False, begins: int = 0
) -> str:
    """Say what the chart of a hardening does not show; empty where its lines say it all.

    removed: latest share that is unlearned for certain, 0 to 1; None where it is not known. users:
    the plan simulates some. trained: one of them has fine-tuned, so that there is a second line.
    begins: step at which the lines begin, before it.
    """
    if begins > 1:
        return (
            f"How much is removed is shown from step {begins}, as an average of {begins} steps: "
            "single steps differ too much by chance."
        )
    if removed is None:
        return ""
    if removed < NOTHING:
        said = "Nothing was removed" if ended else "Nothing is removed yet"
        if trained:
            return f"{said}, so nothing can come back: lines that agree here do not mean success."
        return f"{said}."
    if ended:
        return SHARE_OF_LOSSES
    if users and not trained:
        return "No simulated user has fine-tuned yet: the line that shows relapse comes later."
    return ""


def time_text(seconds: Any) -> str:
    """Format seconds as people say them: 8 s, 3 min, 2 h 5 min."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
