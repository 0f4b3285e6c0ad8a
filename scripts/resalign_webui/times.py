"""The durations that the page states, as actions: values in, HTML and choices out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from ...backend.plan.durations import Pace
from . import graphics, pace, probe_times, thoroughness, views
from . import host as hosts
from .host import DEMO, Host
from .runs import Run


class Times(ABC):
    host: Host

    @abstractmethod
    def _runs(self) -> list[Run]: ...

    def preset_choices(
        self,
        checkpoint: Any,
        resolution: Any = 0,
        device: Any = "",
        *,
        every: Any = True,
        chosen: Any = "",
    ) -> list[tuple[str, str]]:
        """Return the choices of thoroughness, each with its time for a checkpoint here."""
        found = self._pace(checkpoint, resolution, device)
        return thoroughness.preset_choices(
            str(checkpoint), found[0] if found else None, every=bool(every), chosen=str(chosen),
            unknown=graphics.lacking(device, self.host),
        )  # fmt: skip

    def preset_line(
        self, preset: Any, checkpoint: Any, resolution: Any = 0, device: Any = ""
    ) -> str:
        """Say how long a choice takes and what it is for, and what that is computed from."""
        found = self._pace(checkpoint, resolution, device) or (None, "")
        unknown = graphics.lacking(device, self.host)
        said = thoroughness.preset_line(str(preset), str(checkpoint), *found, unknown)
        return views.help_text(said) if said else ""

    def attacks_line(self, *values: Any) -> str:
        """Say how long the probe that the form asks for takes. values: of `probe_times.FIELDS`."""
        asked: dict[str, Any] = dict(zip(probe_times.FIELDS, values, strict=False))
        said = probe_times.line_of(asked, self._runs(), self.host)
        return views.help_text(said) if said else ""

    def _pace(self, checkpoint: Any, resolution: Any, device: Any) -> tuple[Pace, str] | None:
        """Return how fast this machine was with a checkpoint; None where that is not known."""
        files, folder = dict(self.host.checkpoints()), hosts.work_folder(self.host)
        chosen = str(device or self.host.setting("device"))
        side = int(resolution) if isinstance(resolution, int | float) else 0
        if checkpoint == DEMO:
            return pace.known(folder, "demo", None, chosen)
        if checkpoint not in files:
            return None
        return pace.known(folder, str(files[checkpoint].absolute()), side, chosen)
