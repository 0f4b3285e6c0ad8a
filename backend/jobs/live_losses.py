"""Losses of a hardening's steps as its chart shows them: averages, without what chance explains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..plan.removal import harm_scale, mean, shares

Curves = dict[str, list[list[float]]]


@dataclass(frozen=True, slots=True)
class _Step:
    """harm_after less harm, of the same batch; None without simulated users. q: likewise."""

    harm: float
    relapse: float | None = None
    q: float | None = None


class Losses:
    """The harm losses of one run, averaged over the latest `window` steps.

    The loss after a fine-tuning is drawn as far above the averaged one as it was, on average, in
    the same steps: both are of one batch, so that their difference has little noise.
    """

    def __init__(self, window: int, plan: Any = None) -> None:
        """plan: for the scale; None draws the averages as they are."""
        self.window, self._plan = window, plan
        self._steps: dict[int, _Step] = {}
        self.scale: tuple[float, float] | None = None
        self.share: float | None = None  # unlearned, where the losses tell it
        self.figures: dict[str, float] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Count an outer step, also one that is measured again."""
        harm, after = values.get("harm", math.nan), values.get("harm_after", math.nan)
        if math.isfinite(harm):
            relapse = after - harm if math.isfinite(after) else None
            q = values.get("q", math.nan)
            self._steps[step] = _Step(harm, relapse, q if math.isfinite(q) else None)

    def curves(self) -> Curves:
        """Return the curves `harm` and `harm after`, and renew scale, share and figures.

        They begin when the first average is complete. Where nothing is removed for certain, both
        are at the start: a relapse of nothing says nothing either.
        """
        places = sorted(self._steps)
        steps = [self._steps[place] for place in places]
        window, harms = self.window, [step.harm for step in steps]
        if len(steps) < window:
            return {}
        start = mean(harms[:window])
        self.scale = None if self._plan is None else harm_scale(self._plan, start)
        unlearned = [] if self.scale is None else shares(harms, window, self.scale)
        found: Curves = {"harm": [], "harm after": []}
        for at in range(window, len(steps) + 1):
            latest = steps[at - window : at]
            now = mean([step.harm for step in latest])
            relapses = [step.relapse for step in latest if step.relapse is not None]
            back = mean(relapses) if relapses else None
            if self.scale is not None:
                self.share = unlearned[at - window]
                if not self.share:
                    now, back = start, None if back is None else 0.0
            found["harm"].append([places[at - 1], _short(now)])
            if back is not None:
                found["harm after"].append([places[at - 1], _short(now + back)])
        self.figures = self._latest(steps[-window:], found)
        return {name: points for name, points in found.items() if points}

    def _latest(self, latest: list[_Step], found: Curves) -> dict[str, float]:
        """Return the latest averages, and q: the share of what is removed that a fine-tuning left;
        only where something is removed that could come back."""
        names = {"harm": "harm", "harm_after": "harm after"}
        last = found["harm"][-1][0]
        figures = {
            name: found[label][-1][1]
            for name, label in names.items()
            if found[label] and found[label][-1][0] == last
        }
        if self.scale is not None:
            if self.share and "harm_after" in figures:  # as a reader computes it from both shares
                start = self.scale[0]
                left = (start - figures["harm_after"]) / (start - figures["harm"])
                figures["q"] = _short(left)
            return figures
        if kept := [step.q for step in latest if step.q is not None]:
            figures["q"] = _short(mean(kept))
        return figures


def _short(value: float) -> float:
    return float(f"{value:.6g}")
