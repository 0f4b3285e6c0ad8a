"""Shows a running node's progress (bar, curves, pictures) and lets the user stop it.

`Live` is the backend's progress callback. At every call it asks ComfyUI whether the user has
pressed cancel, moves the node's bar, and sends our widget the event `resalign.progress`. The last
state of each node of a workflow is kept for pages that are opened during a run (`routes.py`).
An event contains pictures only when there are new ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backend.jobs.live_state import LiveState
from ..backend.jobs.live_state import blurred as blurred
from ..backend.jobs.live_state import thinned as thinned
from ..backend.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from ..backend.plan.hardening import HardeningPlan
    from ..backend.run.records import StepRecord

EVENT = "resalign.progress"
STATES: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()  # by workflow and node
_KEPT_STATES = 32


class Live:
    """Progress of one node. Use as the backend's `on_progress`, then call `finish` or `fail`."""

    def __init__(
        self, hidden: Any, kind: str, total: int = 1, *, show_pictures: bool = False
    ) -> None:
        """hidden: the node's hidden inputs, `unique_id` and `extra_pnginfo`."""
        from comfy.utils import ProgressBar

        node_id = getattr(hidden, "unique_id", None)
        self.node, self.workflow = str(node_id or ""), workflow_of(hidden)
        self._bar = ProgressBar(1000, node_id=node_id)
        self._live = LiveState(kind, total, show_pictures=show_pictures, on_change=self._send)
        self._sent: list[dict[str, Any]] | None = None  # pictures of the last event
        self._page: str | None = None  # see `stay_with_page`
        self._lines: list[str] = []  # of `show_lines`, which a worker's state does not contain
        self._reached = 0.0  # share of the whole job; stages count for themselves
        self.state = self._live.state
        key = (self.workflow, self.node)
        STATES.pop(key, None)
        STATES[key] = self.state
        while len(STATES) > _KEPT_STATES:
            STATES.popitem(last=False)
        self._live.report(now=True)

    def __call__(self, progress: Progress, /) -> None:
        check_interrupt()
        self._live(progress)
        self.move_bar()

    def picture(self, image: Any, caption: str, *, flagged: bool, step: int = 0) -> None:
        """Show a PIL image; blur a flagged one, unless all are to be shown."""
        self._live.picture(image, caption, flagged=flagged, step=step)

    def keep_first_pictures(self, folder: Path, *, resumed: bool) -> None:
        """Keep the pictures from before the first step; see `LiveState.keep_first_pictures`."""
        self._live.keep_first_pictures(folder, resumed=resumed)

    def pictures_from(self, folder: Path) -> ProgressCallback:
        """Return a progress callback that shows the pictures that a probe saved in its folder."""
        return self._live.pictures_from(folder)

    def mirror(self, state: dict[str, Any]) -> None:
        """Show the state that a worker reports; its caller tells how it ended.

        May be called from any thread: unlike `__call__` it neither asks for an interrupt nor moves
        the bar, which `move_bar` does on the node's own thread.
        """
        self.state.update({name: value for name, value in state.items() if name != "status"})
        self.state["remarks"] = [*self._lines, *state.get("remarks", ())]
        self._send(self.state)

    def move_bar(self) -> None:
        """Move the node's bar to where the state stands."""
        self._bar.update_absolute(int(1000 * self._share()), 1000)

    def stay_with_page(self) -> None:
        """Send further events to the page that queued the node, whatever ComfyUI works on then."""
        from server import PromptServer

        self._page = PromptServer.instance.client_id or ""

    def note(self, message: str) -> None:
        """Show a message where no steps can be counted."""
        self._live.note(message)

    def show_lines(self, lines: list[str]) -> None:
        """Show lines about the whole run, which stay visible."""
        self._lines += lines
        if lines:
            self._live.remark(lines)

    def recall(self, records: Iterable[StepRecord], message: str, verdict: str = "") -> None:
        """Show a run that was finished earlier: its curves and figures, without a duration."""
        records = list(records)
        self._live.recall(
            Progress(stage="harden", step=record.step, total=1, values=record.values())
            for record in records
        )
        self.state["step"] = records[-1].step if records else self.state["step"]
        self._live.end("done", message, timed=False, verdict=verdict)

    def recall_probe(self, folder: Path) -> None:
        """Show the points that an earlier session left in a probe's folder."""
        self._live.recall_probe(folder)

    def plan(
        self, plan: HardeningPlan, records: Iterable[dict[str, Any]] = (), *, every: int = 0
    ) -> None:
        """Tell stages and time left of a plan's whole job; see `LiveState.plan`."""
        self._live.plan(plan, records, every=every)

    def finish(self, message: str, verdict: str = "") -> None:
        self._live.end("done", message, verdict=verdict)

    def stop(self, message: str) -> None:
        """Show that the user stopped the run."""
        self._live.end("stopped", message)

    def fail(self, message: str) -> None:
        self._live.end("failed", message)

    def ended_by(self, error: BaseException, stopped: str) -> None:
        """Show how the run ended; the caller raises the error again."""
        if is_interrupt(error):
            self.stop(stopped)
        else:
            self.fail(str(error) or type(error).__name__)

    def _share(self) -> float:
        """Return the share of the whole job that is done, which never falls.

        Work that belongs to no counted stage, such as reading pictures, leaves it as it is.
        """
        self._reached = max(self._reached, min(1.0, self.state.get("share") or 0.0))
        return self._reached

    def _send(self, state: dict[str, Any]) -> None:
        from server import PromptServer

        state["share"] = self._share()
        pictures = list(state["pictures"])
        if pictures == self._sent:
            state = {name: value for name, value in state.items() if name != "pictures"}
        self._sent = pictures
        server = PromptServer.instance
        page = (server.client_id if self._page is None else self._page) or None
        if page is None and "pictures" in state:  # every page gets the event
            state = without_bare(state)
        data = {"node": self.node, "workflow": self.workflow, "state": state}
        server.send_sync(EVENT, data, page)


def without_bare(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state without the pictures of a concept that the user chose to see unblurred."""
    pictures = [picture for picture in state["pictures"] if not picture.get("bare")]
    return {**state, "pictures": pictures}


def workflow_of(hidden: Any) -> str:
    """Return the id of the page's workflow; empty where the prompt did not come from a page."""
    info = getattr(hidden, "extra_pnginfo", None)
    workflow = info.get("workflow") if isinstance(info, dict) else None
    return str(workflow.get("id") or "") if isinstance(workflow, dict) else ""


def stopped_after(step: int, steps: int) -> str:
    """Return what a stopped run says: nothing that is done is lost, as long as the plan stays."""
    return (
        f"stopped after step {step} of {steps}. All that is done is kept, pictures too: run the "
        "workflow again, with the same settings, to continue"
    )


def check_interrupt() -> None:
    """Raise ComfyUI's interrupt if the user has pressed cancel."""
    from comfy import model_management

    model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    from comfy import model_management

    return isinstance(error, model_management.InterruptProcessingException)
