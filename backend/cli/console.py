"""Prints what the command line shows: text for people, or one JSON object per line for programs.

Text: results on stdout, progress and errors on stderr. With --json: every event on stdout as one
object with `event` (`progress`, `note`, `done`, `error`, ...); stderr has text for the log.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..text.shown import visible

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..progress import Progress

_SHOWN = {  # figures of a step, as the live line names them
    "harm": "L_harm(θ)",
    "harm_after": "L_harm(θ*)",
    "q": "q",
    "retain": "L_retain",
    "residual": "residual",
    "inner_steps": "inner steps",
    "skipped": "solves skipped",
}
_SECONDS_BETWEEN_EVENTS = 0.2
_SECONDS_BETWEEN_LINES = 10.0  # where stderr is a file, not a terminal


class Console:
    """Prints results, notes, errors and progress; `progress` is a ProgressCallback.

    quiet: print errors only, as ranks other than the first do.
    """

    def __init__(self, *, json: bool = False):
        self.json = json
        self.quiet = False
        self._bar: tqdm[Any] | None = None
        self._line: tqdm[Any] | None = None
        self._stage = ""
        self._step = 0
        self._values: dict[str, float] = {}
        self._last = 0.0

    def result(self, text: str, event: str, **fields: Any) -> None:
        """Print the result of a command."""
        if self.quiet:
            return
        self.close()
        if self.json:
            self._emit(event, **fields)
        else:
            print(visible(text))

    def note(self, text: str) -> None:
        """Print something worth knowing meanwhile."""
        if self.quiet:
            return
        self.close()
        if self.json:
            self._emit("note", message=text)
        print(visible(text), file=sys.stderr)

    def warning(self, text: str) -> None:
        if self.quiet:
            return
        self.close()
        if self.json:
            self._emit("warning", message=text)
        print(f"resalign: warning: {visible(text)}", file=sys.stderr)

    def error(self, text: str) -> None:
        self.close()
        if self.json:
            self._emit("error", message=text)
        print(f"resalign: {visible(text)}", file=sys.stderr)

    def progress(self, progress: Progress, /) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        finished_step = progress.step != self._step or progress.stage != self._stage
        self._values = {**self._values, **progress.values}
        if self.json:
            if finished_step or progress.values or now - self._last >= _SECONDS_BETWEEN_EVENTS:
                self._last = now
                point = {
                    "labels": dict(progress.labels),
                    "pictures": [asdict(picture) for picture in progress.pictures],
                }
                self._emit(
                    "progress", stage=progress.stage, step=progress.step, total=progress.total,
                    micro_step=progress.micro_step, micro_total=progress.micro_total,
                    values=dict(progress.values), message=progress.message,
                    **{name: value for name, value in point.items() if value},
                    **_whole(progress),
                )  # fmt: skip
            self._stage, self._step = progress.stage, progress.step
            return
        if progress.stage != self._stage or self._bar is None or self._bar.total != progress.total:
            self._begin(progress)
        self._step = progress.step
        self._show(progress, now)

    def close(self) -> None:
        """Remove the bar; the next progress begins a new one."""
        for bar in (self._line, self._bar):
            if bar is not None:
                bar.close()
        self._bar = self._line = None
        self._stage, self._values = "", {}

    def _begin(self, progress: Progress) -> None:
        from tqdm import tqdm

        self.close()
        self._stage = progress.stage
        self._values = dict(progress.values)
        terminal = sys.stderr.isatty()
        begun = progress.step if progress.micro_step else max(progress.step - 1, 0)
        if progress.share is not None:
            begun = _units(progress)
        rate = "[{elapsed} < {remaining}, {rate_fmt}]"
        if _tells_left(progress):  # parts differ in cost, so the bar's own rate is no estimate
            rate = "[{elapsed}{postfix}]"
        shape = "{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total} " + rate
        self._bar = tqdm(
            total=progress.total, initial=begun, desc=visible(progress.stage), unit="step",
            bar_format=shape, dynamic_ncols=True, file=sys.stderr, leave=True,
            mininterval=0.1 if terminal else _SECONDS_BETWEEN_LINES,
        )  # fmt: skip
        if terminal:
            self._line = tqdm(
                total=0, bar_format="{desc}", position=1, leave=False, file=sys.stderr
            )

    def _show(self, progress: Progress, now: float) -> None:
        assert self._bar is not None
        if _tells_left(progress):
            from ..jobs.live_words import time_text

            left = time_text(progress.left)
            self._bar.set_postfix_str(f"about {left} left" if left else "", refresh=False)
        self._bar.update(min(_units(progress), progress.total) - self._bar.n)
        line = visible(live_line(self._values, progress.message))
        if self._line is not None:
            self._line.set_description_str("  " + line)
        elif progress.values and now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            print(
                f"\n{visible(progress.stage)} {progress.step}/{progress.total}: {line}",
                file=sys.stderr,
            )

    def _emit(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}, default=str), flush=True)


def _tells_left(progress: Progress) -> bool:
    """Return True for work that says itself how long it still takes, once it knows."""
    return progress.left is not None or progress.stage == "probing"


def _whole(progress: Progress) -> dict[str, float]:
    """Return what is known of the whole job: the share that is done, and the seconds left."""
    found = {"share": progress.share, "left": progress.left}
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def _units(progress: Progress) -> float:
    """Return the units that are done, by cost where the work knows it, so that the time left that
    the bar shows is not that of equal units."""
    if progress.share is not None:
        return progress.share * progress.total
    part = progress.micro_step / progress.micro_total if progress.micro_total else 0
    return progress.step + part


def live_line(values: dict[str, float], message: str = "") -> str:
    """Format figures as `L_harm(θ) -0.341  L_harm(θ*) -0.212  q 0.62 ...`, in a fixed order."""
    known = [f"{_SHOWN[name]} {values[name]:.3g}" for name in _SHOWN if name in values]
    other = [f"{name} {value:.3g}" for name, value in values.items() if name not in _SHOWN]
    return "  ".join([*known, *other, *([message] if message else [])])
