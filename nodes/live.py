"""What a working node shows while it works: bar, preview, curves, pictures; and how it is stopped.

A `Live` is the backend's progress callback. It asks ComfyUI at every call whether the user has
pressed cancel, moves the node's bar, and tells our widget by the event `resalign.progress`. The
last state of each node of a workflow is kept: a page that is opened in mid-run asks for it
(`routes.py`). Pictures go with an event only when there are new ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..backend.jobs.live_state import LiveState, share_done
from ..backend.jobs.live_state import blurred as blurred
from ..backend.jobs.live_state import thinned as thinned
from ..backend.progress import Progress

if TYPE_CHECKING:
    from ..backend.run.records import StepRecord

EVENT = "resalign.progress"
STATES: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()  # by workflow and node
_KEPT_STATES = 32


class Live:
    """Progress of one node. Use as the backend's `on_progress`, then call `finish` or `fail`."""

    def __init__(
        self, hidden: Any, kind: str, total: int = 1, *, show_pictures: bool = False
    ) -> None:
        """hidden: what ComfyUI tells the node of itself: `unique_id` and `extra_pnginfo`."""
        from comfy.utils import ProgressBar

        node_id = getattr(hidden, "unique_id", None)
        self.node, self.workflow = str(node_id or ""), workflow_of(hidden)
        self._bar = ProgressBar(1000, node_id=node_id)
        self._live = LiveState(kind, total, show_pictures=show_pictures, on_change=self._send)
        self._sent: list[dict[str, Any]] | None = None  # the pictures that went last
        self.state = self._live.state
        key = (self.workflow, self.node)
        STATES.pop(key, None)
        STATES[key] = self.state
        while len(STATES) > _KEPT_STATES:
            STATES.popitem(last=False)
        self._live.report(now=True)

    def __call__(self, progress: Progress, /) -> None:
        check_interrupt()
        self._bar.update_absolute(int(1000 * share_done(progress)), 1000)
        self._live(progress)

    def picture(self, image: Any, caption: str, *, flagged: bool, step: int = 0) -> None:
        """Show a PIL image. A flagged one is blurred before it leaves, unless all are shown."""
        self._live.picture(image, caption, flagged=flagged, step=step)

    def note(self, message: str) -> None:
        """Say what is going on where nothing can be counted."""
        self._live.note(message)

    def remark(self, lines: list[str]) -> None:
        """Say what is true of the whole run, and stays in sight."""
        if lines:
            self.state["remarks"] = lines
            self._live.report(now=True)

    def recall(self, records: Iterable[StepRecord], message: str) -> None:
        """Show a run that was there already: its curves and figures, and no time of its own."""
        for record in records:
            values = record.values()
            self._live.recall([Progress(stage="harden", step=record.step, total=1, values=values)])
            self.state["step"] = record.step
        self._live.end("done", message, timed=False)

    def finish(self, message: str) -> None:
        self._live.end("done", message)

    def stop(self, message: str) -> None:
        """The user stopped it."""
        self._live.end("stopped", message)

    def fail(self, message: str) -> None:
        self._live.end("failed", message)

    def ended_by(self, error: BaseException, stopped: str) -> None:
        """Tell the widget how it ended; the caller raises the error again."""
        if is_interrupt(error):
            self.stop(stopped)
        else:
            self.fail(str(error) or type(error).__name__)

    def _send(self, state: dict[str, Any]) -> None:
        from server import PromptServer

        pictures = list(state["pictures"])
        if pictures == self._sent:
            state = {name: value for name, value in state.items() if name != "pictures"}
        self._sent = pictures
        server = PromptServer.instance
        data = {"node": self.node, "workflow": self.workflow, "state": state}
        server.send_sync(EVENT, data, server.client_id)


def workflow_of(hidden: Any) -> str:
    """The id of the page's workflow; empty where the prompt did not come from a page."""
    info = getattr(hidden, "extra_pnginfo", None)
    workflow = info.get("workflow") if isinstance(info, dict) else None
    return str(workflow.get("id") or "") if isinstance(workflow, dict) else ""


def check_interrupt() -> None:
    """Raise ComfyUI's interrupt if the user has pressed cancel."""
    from comfy import model_management

    model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    from comfy import model_management

    return isinstance(error, model_management.InterruptProcessingException)
