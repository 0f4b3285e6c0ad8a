"""What a working node shows while it works: bar, preview, curves, pictures; and how it is stopped.

A `Live` is the backend's progress callback. It asks ComfyUI at every call whether the user has
pressed cancel, moves the node's bar, and tells our widget by the event `resalign.progress`. The
last state of each node is kept: a page that is opened in mid-run asks for it (`routes.py`).
"""

from __future__ import annotations

import base64
import io as bytes_io
import math
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..backend.progress import Progress

EVENT = "resalign.progress"
STATES: OrderedDict[str, dict[str, Any]] = OrderedDict()  # by node, the latest last
_KEPT_STATES = 32
_PICTURES = 4
_POINTS = 200
_SIDE = 256  # pixels of a preview's longer side
_INTERVAL = 0.2  # seconds between two events
_CURVES = {"harm": "harm", "harm_after": "harm after", "retain": "retain"}


class Live:
    """Progress of one node. Use as the backend's `on_progress`, then call `finish` or `fail`."""

    def __init__(
        self, node_id: str | None, kind: str, total: int = 1, *, show_pictures: bool = False
    ) -> None:
        from comfy.utils import ProgressBar

        self.node = str(node_id or "")
        self.show_pictures = show_pictures
        self._bar = ProgressBar(1000, node_id=node_id)
        self._started = time.monotonic()
        self._stage_began: tuple[str, float, float] = ("", 0.0, 0.0)
        self._told = 0.0
        self.state: dict[str, Any] = {
            "kind": kind, "status": "running", "stage": "", "step": 0, "total": total,
            "micro_step": 0, "micro_total": 0, "message": "", "seconds": 0.0, "left": None,
            "curves": {}, "pictures": [],
        }  # fmt: skip
        STATES.pop(self.node, None)
        STATES[self.node] = self.state
        while len(STATES) > _KEPT_STATES:
            STATES.popitem(last=False)
        self._tell(force=True)

    def __call__(self, progress: Progress, /) -> None:
        check_interrupt()
        state = self.state
        state.update(
            stage=progress.stage, step=progress.step, total=progress.total,
            micro_step=progress.micro_step, micro_total=progress.micro_total,
            message=progress.message,
        )  # fmt: skip
        self._time(progress)
        for name, value in progress.values.items():
            label = _CURVES.get(name) if not progress.labels else _label(progress, name)
            if label and math.isfinite(value):
                at = _position(progress)
                curve = state["curves"].setdefault(label, [])
                curve.append([at, round(float(value), 6)])
                state["curves"][label] = thinned(curve)
        self._bar.update_absolute(int(1000 * _share(progress)), 1000)
        self._tell(force=bool(progress.values))

    def picture(self, image: Any, caption: str, *, flagged: bool, step: int = 0) -> None:
        """Show a PIL image. A flagged one is blurred before it leaves, unless all are shown."""
        shown = image.convert("RGB")
        shown.thumbnail((_SIDE, _SIDE))
        hidden = flagged and not self.show_pictures
        if hidden:
            shown = blurred(shown)
        buffer = bytes_io.BytesIO()
        shown.save(buffer, "JPEG", quality=80)
        url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        self.state["pictures"].append(
            {"url": url, "caption": caption, "flagged": hidden, "step": step}
        )
        del self.state["pictures"][:-_PICTURES]
        share = int(1000 * min(1.0, self.state["step"] / max(1, self.state["total"])))
        self._bar.update_absolute(share, 1000, ("JPEG", shown, _SIDE))
        self._tell(force=True)

    def finish(self, message: str) -> None:
        self._end("done", message)

    def stop(self, message: str) -> None:
        """The user stopped it."""
        self._end("stopped", message)

    def fail(self, message: str) -> None:
        self._end("failed", message)

    def ended_by(self, error: BaseException, stopped: str) -> None:
        """Tell the widget how it ended; the caller raises the error again."""
        if is_interrupt(error):
            self.stop(stopped)
        else:
            self.fail(str(error) or type(error).__name__)

    def _end(self, status: str, message: str) -> None:
        self.state.update(status=status, message=message, left=None, micro_step=0, micro_total=0)
        self.state["seconds"] = round(time.monotonic() - self._started, 1)
        self._tell(force=True)

    def _time(self, progress: Progress) -> None:
        now = time.monotonic()
        self.state["seconds"] = round(now - self._started, 1)
        stage, began, share_then = self._stage_began
        share = _share(progress)
        if stage != progress.stage:
            self._stage_began = (progress.stage, now, share)
            self.state["left"] = None
        elif share - share_then > 0.02:
            self.state["left"] = round((now - began) * (1 - share) / (share - share_then))

    def _tell(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._told < _INTERVAL:
            return
        self._told = now
        from server import PromptServer

        server = PromptServer.instance
        data = {
            "node": self.node, "prompt": getattr(server, "last_prompt_id", None),
            "state": self.state,
        }  # fmt: skip
        server.send_sync(EVENT, data, server.client_id)


def check_interrupt() -> None:
    """Raise ComfyUI's interrupt if the user has pressed cancel."""
    from comfy import model_management

    model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    from comfy import model_management

    return isinstance(error, model_management.InterruptProcessingException)


def blurred(image: Any) -> Any:
    """A PIL image in which nothing can be made out: an eighth of its side as radius."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 8))


def thinned(points: list[Any], most: int = _POINTS) -> list[Any]:
    """Every other point dropped where there are more than `most`; first and last stay."""
    if len(points) <= most:
        return points
    return [*points[:-1:2], points[-1]]


def _share(progress: Progress) -> float:
    """How much of its stage is done, 0 to 1."""
    parts = progress.micro_step / progress.micro_total if progress.micro_total else 0.0
    return min(1.0, (progress.step + parts) / max(1, progress.total))


def _label(progress: Progress, name: str) -> str | None:
    """A probe's point belongs to the curve of its model and attack."""
    return f"{progress.labels.get('model', '')}: {name}" if name == "unsafe" else None


def _position(progress: Progress) -> int:
    at = progress.labels.get("at", "")
    return int(at) if at.isdigit() else progress.step
