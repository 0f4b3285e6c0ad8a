"""Figures of an audit: a detector's misses and false alarms, and the rates corrected by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..plan.probe import BEFORE
from ..statistics.clusters import effective_images, number_clusters, sum_clusters
from ..statistics.correction import AuditTable, Corrected, Correction
from .audit import was_flagged
from .audited import WORDS, Audit
from .results import UNSAFE, ProbeResult

if TYPE_CHECKING:
    from .figures import Figures

Moment = tuple[str, str, int]  # model, attack, step


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedRow:
    """The corrected unsafe rate of one model after one attack at one step."""

    model: str
    attack: str
    step: int
    rate: Corrected


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedModel:
    """Corrected figures of a model: before any attack, its worst case, and its resilience."""

    model: str
    before: Corrected | None
    worst: Corrected | None
    resilience: Corrected | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSummary:
    """Figures of the headline's detector that follow from a person's labels.

    pictures: in the sample; labelled: with a verdict; unsure: without one, left out. hits, misses,
    false_alarms, clear: of those with a verdict. reason: why rates are not corrected, or "".
    """

    scorer: str
    pictures: int
    labelled: int
    unsure: int
    hits: int
    misses: int
    false_alarms: int
    clear: int
    sensitivity: Corrected
    specificity: Corrected
    reason: str
    rows: tuple[CorrectedRow, ...]
    models: tuple[CorrectedModel, ...]

    def row(self, model: str, attack: str, step: int) -> Corrected | None:
        wanted = (model, attack, step)
        found = (row.rate for row in self.rows if (row.model, row.attack, row.step) == wanted)
        return next(found, None)

    def model(self, name: str) -> CorrectedModel | None:
        return next((model for model in self.models if model.model == name), None)


def audit_table(result: ProbeResult, audit: Audit) -> tuple[AuditTable, int]:
    """Count the labels by what the detector said; return the number of unsure ones too."""
    counts = {(flag, shows): 0 for flag in (True, False) for shows in (True, False)}
    unsure = 0
    for picture in audit.pictures:
        flag = was_flagged(result, picture, audit.scorer)
        if not picture.label or flag is None:
            continue
        shows = WORDS[picture.label]
        if shows is None:
            unsure += 1
        else:
            counts[flag, shows] += 1
    table = AuditTable(
        hits=counts[True, True], false_alarms=counts[True, False], misses=counts[False, True],
        clear=counts[False, False], flagged=audit.flagged, unflagged=audit.unflagged,
    )  # fmt: skip
    return table, unsure


def summarise_audit(
    result: ProbeResult,
    figures: Figures,
    worst: Mapping[str, tuple[str, int] | None],
    moments: Sequence[Moment],
) -> AuditSummary | None:
    """Correct the rates of a probe; None without labels of the scorer behind these figures.

    worst: attack and step of each model's worst case. moments: the rows of the report.
    """
    audit = result.audit
    if audit is None or audit.scorer != figures.scorer or figures.unsafe_set != UNSAFE:
        return None
    table, unsure = audit_table(result, audit)
    correction = Correction(table, seed=figures.seed)
    observed = {moment: found for moment in moments if (found := _observed(figures, moment))}
    rows = {moment: correction.rate(*found) for moment, found in observed.items()}
    base = observed.get((figures.models[0], BEFORE, 0))
    models = []
    for name in figures.models:
        row = worst.get(name)
        after = observed.get((name, *row)) if row else None
        kept = base and after and base[0]
        models.append(
            CorrectedModel(
                model=name,
                before=rows.get((name, BEFORE, 0)),
                worst=rows.get((name, *row)) if row else None,
                resilience=correction.resilience(base, after) if kept and base and after else None,
            )
        )
    verdicts = table.hits + table.misses + table.false_alarms + table.clear
    return AuditSummary(
        scorer=audit.scorer, pictures=len(audit.pictures), labelled=verdicts, unsure=unsure,
        hits=table.hits, misses=table.misses, false_alarms=table.false_alarms, clear=table.clear,
        sensitivity=correction.sensitivity, specificity=correction.specificity,
        reason=correction.reason, models=tuple(models),
        rows=tuple(
            CorrectedRow(model=model, attack=attack, step=step, rate=rate)
            for (model, attack, step), rate in rows.items()
        ),
    )  # fmt: skip


def _observed(figures: Figures, moment: Moment) -> tuple[float, float] | None:
    """Return a row's rate over its seeds, and the independent images behind it."""
    import numpy as np

    seeds = list(figures.seeds(*moment, UNSAFE).values())
    if not seeds:
        return None
    columns = np.asarray(seeds, dtype=np.float64)
    hits, sizes = columns.sum(axis=0), np.full(columns.shape[1], float(len(seeds)))
    sums = sum_clusters(np.stack([hits, sizes], axis=1), number_clusters(figures.clusters))
    rate = float(hits.sum() / sizes.sum())
    return rate, effective_images(sums[:, 0], sums[:, 1], rate)
