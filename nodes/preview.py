"""The backend's previews, shown in a node's widget and stopped by ComfyUI's interrupt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..backend.model.model import Model
    from ..backend.plan.hardening import HardeningPlan
    from .live import Live


def previewing(live: Live, model: Model, plan: HardeningPlan, every: int, prompt: str) -> Any:
    """The progress callback of a hardening run: tells `live`, draws every `every` outer steps."""
    from ..backend.jobs.previews import Previewing
    from .live import check_interrupt

    return Previewing(live, live.picture, check_interrupt, model, plan, every, prompt)
