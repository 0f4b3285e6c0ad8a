"""Rates corrected by a detector's measured misses and false alarms.

A person labels pictures that were drawn at random, some from those that the detector flagged and
some from the rest. With the shares of both strata this gives the detector's sensitivity and
specificity (Begg & Greenes, Biometrics 39 (1983), 207-215), and with them the true rate behind an
observed rate p (Rogan & Gladen, American Journal of Epidemiology 107 (1978), 71-76):

    true = (p + specificity − 1) / (sensitivity + specificity − 1), cut to 0 .. 1

Intervals are percentiles of draws from Jeffreys' posterior of each share (Beta(k + ½, n − k + ½)),
of the audit and of the observed rate. The correction assumes that the detector errs alike
everywhere, in every model and after every attack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .clusters import TAILS

if TYPE_CHECKING:
    from numpy import ndarray

DRAWS = 4000
_LEAST_SKILL = 0.05  # of sensitivity + specificity − 1; a detector with less tells nothing
_UNDEFINED = 0.05  # share of draws without that above which no interval is given


@dataclass(frozen=True, slots=True)
class Corrected:
    """A figure with its 95 % interval; None where it cannot be given."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTable:
    """Counts of labelled pictures, and the sizes of the strata from which they were drawn.

    hits: flagged and right; false_alarms: flagged and wrong; misses: not flagged, and wrong;
    clear: not flagged and right. flagged, unflagged: pictures in each stratum.
    """

    hits: int
    false_alarms: int
    misses: int
    clear: int
    flagged: int
    unflagged: int


class Correction:
    """Sensitivity and specificity of a detector, and what they make of its rates.

    sensitivity: share of the pictures with the concept that it flags; specificity: share of the
    others that it does not flag. reason: why nothing can be corrected, or "".
    """

    def __init__(self, table: AuditTable, *, draws: int = DRAWS, seed: int = 0) -> None:
        import numpy as np

        self._random = np.random.default_rng(seed)
        self._draws = draws
        self.reason = _obstacle(table)
        right = _share(table.hits, table.false_alarms)
        missed = _share(table.misses, table.clear)
        self._point = _accuracy(table, np.array([right]), np.array([missed]))
        self._drawn = _accuracy(
            table,
            self._beta(table.hits, table.hits + table.false_alarms),
            self._beta(table.misses, table.misses + table.clear),
        )
        self.sensitivity = _figure(self._point[0], self._drawn[0], self.reason)
        self.specificity = _figure(self._point[1], self._drawn[1], self.reason)
        if not self.reason and float(self._point.sum() - 1) < _LEAST_SKILL:
            self.reason = "the detector's verdicts do not follow the person's"

    def rate(self, rate: float, images: float) -> Corrected:
        """Correct an observed rate. images: how many independent ones it comes from."""
        return self._summed(_true(rate, self._point), self._true_draws(rate, images))

    def resilience(self, base: tuple[float, float], worst: tuple[float, float]) -> Corrected:
        """Correct 1 − worst / base. base, worst: observed rate and independent images of each.

        Both share each draw of sensitivity and specificity. The worst is taken as it was found.
        """
        import numpy as np

        before, after = self._true_draws(*base), self._true_draws(*worst)
        below = np.where(before > 0, before, np.nan)
        start, end = _true(base[0], self._point), _true(worst[0], self._point)
        value = 1 - end / start if start[0] > 0 else np.array([np.nan])
        return self._summed(value, 1 - after / below)

    def _true_draws(self, rate: float, images: float) -> ndarray:
        return _true(self._beta(rate * images, images), self._drawn)

    def _summed(self, value: ndarray, drawn: ndarray) -> Corrected:
        return Corrected(None, None, None) if self.reason else _figure(value, drawn, "")

    def _beta(self, hits: float, total: float) -> ndarray:
        return self._random.beta(hits + 0.5, total - hits + 0.5, self._draws)


def _obstacle(table: AuditTable) -> str:
    if not table.flagged or not table.unflagged:
        which = "none" if not table.flagged else "all"
        return f"the detector flagged {which} of the pictures from which the sample was drawn"
    if not table.hits + table.false_alarms or not table.misses + table.clear:
        return "no flagged picture was labelled, or none that was not flagged"
    if not table.hits + table.misses:
        return "no labelled picture shows the concept, so misses cannot be measured"
    if not table.false_alarms + table.clear:
        return "every labelled picture shows the concept, so false alarms cannot be measured"
    return ""


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else 0.5


def _accuracy(table: AuditTable, right: ndarray, missed: ndarray) -> ndarray:
    """Return sensitivity and specificity, [2, n].

    right: share of the flagged that show the concept; missed: the same of the others.
    """
    import numpy as np

    flagged, unflagged = table.flagged, table.unflagged
    shown = flagged * right + unflagged * missed
    hidden = flagged * (1 - right) + unflagged * (1 - missed)
    return np.stack([
        flagged * right / np.maximum(shown, 1e-12),
        unflagged * (1 - missed) / np.maximum(hidden, 1e-12),
    ])  # fmt: skip


def _true(rate: float | ndarray, accuracy: ndarray) -> ndarray:
    """Return the true rates behind observed ones; NaN where the detector has no skill."""
    import numpy as np

    skill = accuracy.sum(axis=0) - 1
    safe = np.where(skill >= _LEAST_SKILL, skill, np.nan)
    return np.clip((rate + accuracy[1] - 1) / safe, 0, 1)


def _figure(value: ndarray, drawn: ndarray, reason: str) -> Corrected:
    """Sum up a figure and its draws; no interval where too many draws have none."""
    import numpy as np

    point = float(value[0])
    if reason or not np.isfinite(point):
        return Corrected(None, None, None)
    known = drawn[np.isfinite(drawn)]
    if len(known) < (1 - _UNDEFINED) * len(drawn):
        return Corrected(point, None, None)
    low, high = (float(end) for end in np.percentile(known, TAILS))
    return Corrected(point, min(low, point), max(high, point))
