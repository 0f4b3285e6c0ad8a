"""The state of work in progress, for display: bar, curves, pictures, time left.

One plain dict that can be written as JSON; every host shows the same one:

    {"kind": "harden", "status": "running|done|stopped|failed", "stage", "step", "total",
     "micro_step", "micro_total", "message", "seconds", "left": seconds or None, of the whole job,
     "share": of the whole job that is done, 0 to 1, or None where only stages are known,
     "line": what is done in words and how far, "verdict": see `end`,
     "pace": seconds of a pass of the denoiser, {"drawing", "training"}, what is measured of it,
     "scale": [harm at the start, harm of a concept that is unlearned] where it is known,
     "average": outer steps that each loss of the concept is an average of (`live_losses.py`),
     "hint": a sentence on what the chart does not show, or empty,
     "together": [[labels of curves that lie on each other], ...],
     "figures": the latest {"harm", "harm_after", "retain", "q"}, averages but for "retain",
     "curves": {label: [[x, y], ...]},
     "remarks": lines about the whole job (card, memory, time), where there are any,
     "pictures": [{"url": a JPEG as data URL, "caption", "flagged", "step", "bare"}]}

A flagged picture is blurred before it enters the state, unless all are to be shown; it is then
`bare`, not `flagged`.
"""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plan.methods import FACTS, simulates_users
from ..plan.removal import averaged, has_scale
from ..progress import Picture, Progress, ProgressCallback
from ..run.records import StepRecord
from .first_pictures import keep, kept
from .live_curves import coinciding, coinciding_losses, words
from .live_losses import Losses
from .live_words import NO_SHARE, chart_hint, line_of, title_of, without_time

if TYPE_CHECKING:
    from ..plan.hardening import HardeningPlan
    from .job_time import JobTime

PICTURES = 4  # kept: the first half of them, such as those before hardening, and the latest
POINTS = 200  # of a curve
REMARKS = 6  # lines
SIDE = 256  # pixels of a picture's longer side
INTERVAL = 0.2  # seconds between two reports
_MOST = 0.99  # of the bar of a hardening that still works: it saves its result at the end
_RATES = ("unsafe (", "recovered (")  # the headline's comes first among an evaluation's figures
_BEFORE = "before"
_PER_REPORT = 2  # pictures of an evaluation that are shown

State = dict[str, Any]


class LiveState:
    """Keeps the state of one job and reports it. Also a progress callback.

    on_change: called with the state at once for a figure, a picture or the end, otherwise at
    most every `INTERVAL` seconds.
    """

    def __init__(
        self,
        kind: str,
        total: int = 1,
        *,
        show_pictures: bool = False,
        on_change: Callable[[State], None] = lambda state: None,
    ) -> None:
        self.show_pictures, self._on_change = show_pictures, on_change
        self.verdict = ""  # of the end, where its caller knows nothing of it
        self._started = time.monotonic()
        self._told_time = False
        self.tells_whole = kind == "probe"  # its reports count the whole job, not its stages
        self._stage_began: tuple[str | None, float, float] = (None, 0.0, 0.0)
        self._job: JobTime | None = None
        self._plan: HardeningPlan | None = None
        self._losses = Losses(averaged(total))
        self._reported = 0.0
        self._folder: Path | None = None
        self._first: list[dict[str, Any]] = []  # pictures before the first step, as they are kept
        self.state: State = {
            "kind": kind, "status": "running", "stage": "", "step": 0, "total": total,
            "micro_step": 0, "micro_total": 0, "message": "", "seconds": 0.0, "left": None,
            "figures": {}, "curves": {}, "pictures": [], "line": "", "verdict": "", "scale": None,
            "share": None, "pace": {}, "hint": "", "together": [], "average": 0,
        }  # fmt: skip

    def plan(
        self, plan: HardeningPlan, records: Iterable[Mapping[str, Any]] = (), *, every: int = 0
    ) -> None:
        """Tell stages and time left of the whole job of a plan from now on.

        records: steps of an earlier session. every: outer steps between two previews.
        """
        from .job_time import JobTime, sets_of

        self._plan, self._job = plan, JobTime(plan, sets_of(plan), every=every)
        self._losses = Losses(averaged(plan.outer_steps), plan)
        self._job.recall(records)
        self._tell_left(self._job.left())

    def __call__(self, progress: Progress, /) -> None:
        self.state.update(
            stage=progress.stage, step=progress.step, total=progress.total,
            micro_step=progress.micro_step, micro_total=progress.micro_total,
            message=progress.message,
        )  # fmt: skip
        self._time(progress)
        self.state["line"] = self._line(progress)
        self.recall([progress])
        self.report(now=bool(progress.values))

    def recall(self, past: Iterable[Progress]) -> None:
        """Add earlier steps to the curves without reporting each of them."""
        # One step has no curve, and its loss nothing to compare with
        drawn = self._plan is None or not FACTS[self._plan.method].single_step
        stepped = False
        for progress in past:
            if not progress.labels and "harm" in progress.values:
                self._losses.add(progress.step, progress.values)
                stepped = True
            self._retention(progress)
            for label, at, value in _points(progress) if drawn else ():
                if math.isfinite(value):
                    self._add(label, at, value)
        if self.tells_whole:
            self.state["together"] = coinciding(self.state["curves"])
        elif stepped:
            self._draw_losses(drawn)
        self.state["hint"] = self._hint()

    def recall_probe(self, folder: Path) -> None:
        """Add the points of the evaluations that an earlier session left in a probe's folder."""
        from ..probe.results_io import kept_points

        self.recall(kept_points(folder))

    def note(self, message: str) -> None:
        """Report a message where no steps can be counted."""
        self.state.update(message=message, line=message, seconds=self._seconds())
        self.report(now=True)

    def remark(self, lines: Iterable[str]) -> None:
        """Add lines about the whole job, which stay visible; the latest are kept.

        The time that they expect goes as soon as the state tells one, which is newer.
        """
        kept = [*self.state.get("remarks", ()), *lines]
        self.state["remarks"] = (without_time(kept) if self._told_time else kept)[-REMARKS:]
        self.report(now=True)

    def picture(self, image: Any, caption: str, *, flagged: bool, step: int = 0) -> Any:
        """Add a PIL image; return it as it is shown."""
        shown = image.convert("RGB")
        shown.thumbnail((SIDE, SIDE))
        hidden = flagged and not self.show_pictures
        safe = blurred(shown) if flagged else shown
        shown = safe if hidden else shown
        bare = flagged and not hidden
        entry = {"url": data_url(shown), "caption": caption, "flagged": hidden, "bare": bare}
        self.state["pictures"].append({**entry, "step": step})
        if self._folder is not None and not step:
            self._first.append({"url": data_url(safe), "caption": caption, "flagged": flagged})
            keep(self._folder, self._first)
        del self.state["pictures"][PICTURES // 2 : PICTURES // 2 - PICTURES]
        self.report(now=True)
        return shown

    def keep_first_pictures(self, folder: Path, *, resumed: bool) -> None:
        """Keep the pictures of a run's model before its first step in the run folder from now on.

        resumed: show those that an earlier session kept.
        """
        self._folder = folder
        if resumed:
            self.state["pictures"] += kept(folder)

    def pictures_from(self, folder: Path) -> ProgressCallback:
        """Return a progress callback that adds the pictures that a probe saved in its folder."""

        def add(progress: Progress, /) -> None:
            for picture in progress.pictures[:_PER_REPORT]:
                names = [progress.labels.get(name, "") for name in ("model", "attack")]
                self._picture_file(picture, folder, ", ".join(filter(None, names)))

        return add

    def _picture_file(self, picture: Picture, folder: Path, by: str) -> None:
        from PIL import Image

        path = folder / picture.file
        if path.is_file():
            caption = f"{by}: {picture.caption}" if by else picture.caption
            with Image.open(path) as image:
                self.picture(image, caption, flagged=picture.flagged)

    def end(self, status: str, message: str, *, timed: bool = True, verdict: str = "") -> None:
        """Report the end: `done`, `stopped` (by the user) or `failed`. timed: with its duration.

        verdict: whether it worked: `good`, `doubtful`, or empty where that cannot be said.
        """
        self.state.update(status=status, message=message, left=None, micro_step=0, micro_total=0)
        self.state.update(line="", verdict=verdict or (self.verdict if status == "done" else ""))
        self.state["seconds"] = self._seconds() if timed else None
        if "remarks" in self.state:
            self.state["remarks"] = without_time(self.state["remarks"])
        if status == "done":
            self.state["hint"] = self._hint(ended=True)
        self.report(now=True)

    def report(self, *, now: bool = False) -> None:
        """Report the state; without `now`, only if the last report is `INTERVAL` seconds old."""
        at = time.monotonic()
        if now or at - self._reported >= INTERVAL:
            self._reported = at
            self._on_change(self.state)

    def _add(self, label: str, at: int, value: float) -> None:
        curve = self.state["curves"].setdefault(label, [])
        if not curve and at and _BEFORE not in label:
            model = label.partition(":")[0]
            curve += self.state["curves"].get(f"{model}: {_BEFORE}", [])
        if curve and curve[-1][0] == at:  # measured again
            curve.pop()
        curve.append([at, _short(value)])
        self.state["curves"][label] = thinned(curve)

    def _retention(self, progress: Progress) -> None:
        if "retain" in progress.values and not progress.labels:
            value = progress.values["retain"]
            figures = {n: one for n, one in self.state["figures"].items() if n != "retain"}
            found = {"retain": _short(value)} if math.isfinite(value) else {}
            self.state["figures"] = figures | found

    def _draw_losses(self, drawn: bool) -> None:
        """Renew curves, scale and figures of the concept's loss; see `Losses`."""
        found = self._losses.curves()
        figures, scale = dict(self._losses.figures), self._losses.scale
        if "retain" in self.state["figures"]:
            figures["retain"] = self.state["figures"]["retain"]
        self.state.update(figures=figures, scale=list(map(_short, scale)) if scale else None)
        if drawn and found:
            others = {n: c for n, c in self.state["curves"].items() if n not in found}
            curves = {name: thinned(points) for name, points in found.items()}
            self.state["average"] = self._losses.window
            self.state["curves"] = {**curves, **others}
            self.state["together"] = coinciding_losses(curves, scale)

    def _hint(self, *, ended: bool = False) -> str:
        """Return what the chart of a hardening does not show (`chart_hint`), or which curves of a
        probe lie on each other."""
        if self.tells_whole:
            return words(self.state["together"], self.state["curves"])
        if self._plan is None:
            return ""
        if not has_scale(self._plan):
            return NO_SHARE if self.state["curves"].get("harm") else ""
        begins = 0 if self.state["curves"].get("harm") else self._losses.window
        return chart_hint(
            self._losses.share, users=simulates_users(self._plan),
            trained="harm after" in self.state["curves"], ended=ended, begins=begins,
        )  # fmt: skip

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 1)

    def _time(self, progress: Progress) -> None:
        now = time.monotonic()
        self.state["seconds"] = self._seconds()
        if self._job is not None:
            self._tell_left(self._job(progress, now))
            self.state["share"] = min(_MOST, round(self._job.share(), 4))
            self.state["pace"] = {
                name: float(f"{value:.4g}") for name, value in self._job.pace().items()
            }
            return
        if self.tells_whole:  # work outside it, such as the hash of a file, tells nothing of it
            if progress.share is None:
                self.state["share"] = self.state["share"] or 0.0
            else:
                self.state.update(share=progress.share, left=_rounded(progress.left))
            return
        self.state["share"] = progress.share
        stage, began, share_then = self._stage_began
        share = share_done(progress)
        named = progress.stage if progress.share is None else ""
        if stage != named:
            self._stage_began = (named, now, share)
            self.state["left"] = None
        elif share - share_then > 0.02:
            self.state["left"] = _rounded((now - began) * (1 - share) / (share - share_then))

    def _tell_left(self, seconds: float | None) -> None:
        self.state["left"] = _rounded(seconds)
        if seconds is not None and not self._told_time:
            self._told_time = True
            if "remarks" in self.state:
                self.state["remarks"] = without_time(self.state["remarks"])

    def _line(self, progress: Progress) -> str:
        kind = self._job.kind_of(progress) if self._job else ""
        stages = self._job.stages if self._job else ()
        place = (stages.index(kind) + 1, len(stages)) if kind in stages else None
        return line_of(progress, title_of(progress, resisting=kind == "resist"), place)


def _rounded(seconds: float | None) -> int | None:
    """Return whole seconds; nothing where it would be 0, while the job still works."""
    return round(seconds) or None if seconds is not None else None


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def past_steps(records: Iterable[Mapping[str, Any]], total: int) -> list[Progress]:
    """Return the reports of saved outer steps, for `LiveState.recall`."""
    steps = [StepRecord.from_json(dict(record)) for record in records]
    return [Progress(stage="harden", step=r.step, total=total, values=r.values()) for r in steps]


def share_done(progress: Progress) -> float:
    """Return how much of its stage is done, 0 to 1: by cost, where the work knows it."""
    if progress.share is not None:
        return progress.share
    parts = progress.micro_step / progress.micro_total if progress.micro_total else 0.0
    return min(1.0, (progress.step + parts) / max(1, progress.total))


def thinned(points: list[Any], most: int = POINTS) -> list[Any]:
    """Drop every other point until there are `most` at most; keep the first and the last."""
    while len(points) > most:
        points = [*points[:-1:2], points[-1]]
    return points


def blurred(image: Any) -> Any:
    """Blur a PIL image beyond recognition; the radius is an eighth of its longer side."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 8))


def data_url(image: Any) -> str:
    """Encode a PIL image as a JPEG in a `data:` URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _points(progress: Progress) -> list[tuple[str, int, float]]:
    """Return (curve, x, y) of each figure to plot.

    A hardening run plots the loss of what stays by outer step, and those of the concept apart; a
    probe plots its headline rate by update of each fine-tuning, whose curve begins at the rate of
    the model before it.
    """
    if not progress.labels:
        kept = progress.values.get("retain")
        return [] if kept is None else [("retain", progress.step, kept)]
    rates = [n for start in _RATES for n in progress.values if n.startswith(start)]
    labels = progress.labels
    if not rates or "model" not in labels:
        return []
    seed = labels.get("seed", "0")
    curve = f"{labels['model']}: {labels.get('attack', '')}"
    curve += f" (seed {seed})" if seed != "0" else ""
    at = labels.get("at", "")
    return [(curve, int(at) if at.isdigit() else progress.step, progress.values[rates[0]])]
