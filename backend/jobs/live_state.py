"""What work in progress looks like to somebody who watches: bar, curves, pictures, time left.

One plain dict, which is JSON as it stands; every host shows the same one:

    {"kind": "harden", "status": "running|done|stopped|failed", "stage", "step", "total",
     "micro_step", "micro_total", "message", "seconds", "left": seconds or None,
     "figures": the last outer step's {"harm", "harm_after", "retain", "q"}, what it has of them,
     "curves": {label: [[x, y], ...]},
     "pictures": [{"url": a JPEG as data URL, "caption", "flagged", "step"}]}

A flagged picture is blurred before it gets into the state, unless all are to be shown.
"""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..progress import Picture, Progress

PICTURES = 4  # kept, the latest
POINTS = 200  # of a curve
SIDE = 256  # pixels of a picture's longer side
INTERVAL = 0.2  # seconds between two tellings
_CURVES = {"harm": "harm", "harm_after": "harm after", "retain": "retain"}
_FIGURES = (*_CURVES, "q")
_RATES = ("unsafe (", "recovered (")  # the headline's comes first among a look's figures
_BEFORE = "before"

State = dict[str, Any]


class LiveState:
    """Keeps the state of one piece of work, and tells it on. Also a progress callback.

    tell: given the state whenever it is worth showing, at most every `INTERVAL` seconds between
    two moments that matter (a figure, a picture, an end).
    """

    def __init__(
        self,
        kind: str,
        total: int = 1,
        *,
        show_pictures: bool = False,
        tell: Callable[[State], None] = lambda state: None,
    ) -> None:
        self.show_pictures, self._tell_on = show_pictures, tell
        self._started = time.monotonic()
        self._stage_began: tuple[str, float, float] = ("", 0.0, 0.0)
        self._told = 0.0
        self.state: State = {
            "kind": kind, "status": "running", "stage": "", "step": 0, "total": total,
            "micro_step": 0, "micro_total": 0, "message": "", "seconds": 0.0, "left": None,
            "figures": {}, "curves": {}, "pictures": [],
        }  # fmt: skip

    def __call__(self, progress: Progress, /) -> None:
        self.state.update(
            stage=progress.stage, step=progress.step, total=progress.total,
            micro_step=progress.micro_step, micro_total=progress.micro_total,
            message=progress.message,
        )  # fmt: skip
        self._time(progress)
        self.recall([progress])
        self.tell(now=bool(progress.values))

    def recall(self, past: Iterable[Progress]) -> None:
        """Draw the curves of what was done before, without telling of each moment."""
        for progress in past:
            self._figures(progress)
            for label, at, value in _points(progress):
                if math.isfinite(value):
                    self._add(label, at, value)

    def note(self, message: str) -> None:
        """Say what is going on where nothing can be counted."""
        self.state.update(message=message, seconds=self._seconds())
        self.tell(now=True)

    def picture(self, image: Any, caption: str, *, flagged: bool, step: int = 0) -> Any:
        """Keep a PIL image; returns it as it is shown."""
        shown = image.convert("RGB")
        shown.thumbnail((SIDE, SIDE))
        hidden = flagged and not self.show_pictures
        if hidden:
            shown = blurred(shown)
        self.state["pictures"].append(
            {"url": data_url(shown), "caption": caption, "flagged": hidden, "step": step}
        )
        del self.state["pictures"][:-PICTURES]
        self.tell(now=True)
        return shown

    def picture_file(self, picture: Picture, folder: Path) -> None:
        """The same of a file, where it is there."""
        from PIL import Image

        path = folder / picture.file
        if path.is_file():
            with Image.open(path) as image:
                self.picture(image, picture.caption, flagged=picture.flagged)

    def end(self, status: str, message: str, *, timed: bool = True) -> None:
        """status: `done`, `stopped` (by the user) or `failed`. timed: say how long it took."""
        self.state.update(status=status, message=message, left=None, micro_step=0, micro_total=0)
        self.state["seconds"] = self._seconds() if timed else None
        self.tell(now=True)

    def tell(self, *, now: bool = False) -> None:
        """Pass the state on, unless that was done a moment ago and nothing has happened."""
        at = time.monotonic()
        if now or at - self._told >= INTERVAL:
            self._told = at
            self._tell_on(self.state)

    def _add(self, label: str, at: int, value: float) -> None:
        curve = self.state["curves"].setdefault(label, [])
        if not curve and at and _BEFORE not in label:
            model = label.partition(":")[0]
            curve += self.state["curves"].get(f"{model}: {_BEFORE}", [])
        curve.append([at, round(float(value), 6)])
        self.state["curves"][label] = thinned(curve)

    def _figures(self, progress: Progress) -> None:
        found = {name: progress.values[name] for name in _FIGURES if name in progress.values}
        if found and not progress.labels:
            finite = {name: round(float(v), 6) for name, v in found.items() if math.isfinite(v)}
            self.state["figures"] = finite

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 1)

    def _time(self, progress: Progress) -> None:
        now = time.monotonic()
        self.state["seconds"] = self._seconds()
        stage, began, share_then = self._stage_began
        share = share_done(progress)
        if stage != progress.stage:
            self._stage_began = (progress.stage, now, share)
            self.state["left"] = None
        elif share - share_then > 0.02:
            self.state["left"] = round((now - began) * (1 - share) / (share - share_then))


def share_done(progress: Progress) -> float:
    """How much of its stage is done, 0 to 1."""
    parts = progress.micro_step / progress.micro_total if progress.micro_total else 0.0
    return min(1.0, (progress.step + parts) / max(1, progress.total))


def thinned(points: list[Any], most: int = POINTS) -> list[Any]:
    """Every other point dropped where there are more than `most`; first and last stay."""
    if len(points) <= most:
        return points
    return [*points[:-1:2], points[-1]]


def blurred(image: Any) -> Any:
    """A PIL image in which nothing can be made out: an eighth of its side as radius."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 8))


def data_url(image: Any) -> str:
    """A PIL image as a JPEG in a `data:` URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _points(progress: Progress) -> list[tuple[str, int, float]]:
    """(curve, x, y) of each figure that is drawn: losses by outer step, a probe's headline rate
    by update of each fine-tuning, whose curve begins at what the model was before."""
    if not progress.labels:
        return [
            (label, progress.step, progress.values[name])
            for name, label in _CURVES.items()
            if name in progress.values
        ]
    rates = [n for start in _RATES for n in progress.values if n.startswith(start)]
    labels = progress.labels
    if not rates or "model" not in labels:
        return []
    seed = labels.get("seed", "0")
    curve = f"{labels['model']}: {labels.get('attack', '')}"
    curve += f" (seed {seed})" if seed != "0" else ""
    at = labels.get("at", "")
    return [(curve, int(at) if at.isdigit() else progress.step, progress.values[rates[0]])]
