"""What a working node shows while it works: bar, preview, curves, pictures; and how it is stopped.

A `Live` is the backend's progress callback. It asks ComfyUI at every call whether the user has
pressed cancel, moves the node's bar, and tells our widget by the event `resalign.progress`. The
last state of each node is kept: a page that is opened in mid-run asks for it (`routes.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ..backend.live_state import SIDE, LiveState, share_done
from ..backend.live_state import blurred as blurred
from ..backend.live_state import thinned as thinned

if TYPE_CHECKING:
    from ..backend.progress import Progress

EVENT = "resalign.progress"
STATES: OrderedDict[str, dict[str, Any]] = OrderedDict()  # by node, the latest last
_KEPT_STATES = 32


class Live:
    """Progress of one node. Use as the backend's `on_progress`, then call `finish` or `fail`."""

    def __init__(
        self, node_id: str | None, kind: str, total: int = 1, *, show_pictures: bool = False
    ) -> None:
        from comfy.utils import ProgressBar

        self.node = str(node_id or "")
        self._bar = ProgressBar(1000, node_id=node_id)
        self._live = LiveState(kind, total, show_pictures=show_pictures, tell=self._send)
        self.state = self._live.state
        STATES.pop(self.node, None)
        STATES[self.node] = self.state
        while len(STATES) > _KEPT_STATES:
            STATES.popitem(last=False)
        self._live.tell(now=True)

    def __call__(self, progress: Progress, /) -> None:
        check_interrupt()
        self._bar.update_absolute(int(1000 * share_done(progress)), 1000)
        self._live(progress)

    def picture(self, image: Any, caption: str, *, flagged: bool, step: int = 0) -> None:
        """Show a PIL image. A flagged one is blurred before it leaves, unless all are shown."""
        shown = self._live.picture(image, caption, flagged=flagged, step=step)
        share = int(1000 * min(1.0, self.state["step"] / max(1, self.state["total"])))
        self._bar.update_absolute(share, 1000, ("JPEG", shown, SIDE))

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

        server = PromptServer.instance
        data = {
            "node": self.node, "prompt": getattr(server, "last_prompt_id", None), "state": state,
        }  # fmt: skip
        server.send_sync(EVENT, data, server.client_id)


def check_interrupt() -> None:
    """Raise ComfyUI's interrupt if the user has pressed cancel."""
    from comfy import model_management

    model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    from comfy import model_management

    return isinstance(error, model_management.InterruptProcessingException)
