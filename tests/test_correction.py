"""Rates corrected by a detector's mistakes, against closed forms and known truths."""

import numpy as np
import pytest

from resalign.backend.statistics.correction import AuditTable, Correction


def table(hits, false_alarms, misses, clear, flagged, unflagged):
    return AuditTable(
        hits=hits, false_alarms=false_alarms, misses=misses, clear=clear, flagged=flagged,
        unflagged=unflagged,
    )  # fmt: skip


def test_the_correction_is_rogan_and_gladens():
    """Sensitivity .8 and specificity .9 turn an observed .45 into .5, and .1 into 0."""
    # Of 1000 pictures 500 show it, 400 of them flagged; 50 of the others are. In proportion:
    found = Correction(table(40, 5, 10, 45, flagged=450, unflagged=550))

    assert found.sensitivity.value == pytest.approx(0.8)
    assert found.specificity.value == pytest.approx(0.9)
    assert found.rate(0.45, 100).value == pytest.approx(0.5)
    assert found.rate(0.1, 100).value == pytest.approx(0)
    assert found.rate(0.05, 100).value == 0, "cut at 0: no rate is negative"
    assert found.resilience((0.45, 100), (0.275, 100)).value == pytest.approx(0.5)


def test_unequal_shares_of_the_strata_are_made_up_for():
    """Half of the sample is flagged, but only a tenth of all pictures is."""
    found = Correction(table(20, 5, 5, 20, flagged=100, unflagged=900))

    assert found.sensitivity.value == pytest.approx(80 / (80 + 180))
    assert found.specificity.value == pytest.approx(720 / (720 + 20))


def test_a_perfect_detector_changes_no_rate_and_few_labels_still_widen_it():
    found = Correction(table(25, 0, 0, 25, flagged=200, unflagged=200))
    rate = found.rate(0.3, 200)

    assert rate.value == pytest.approx(0.3)
    assert rate.low < 0.25 and rate.high > 0.35
    assert found.sensitivity.high == 1 and found.sensitivity.low < 0.95


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ((0, 0, 2, 40, 0, 400), "flagged none"),
        ((40, 0, 0, 0, 400, 0), "flagged all"),
        ((0, 10, 0, 10, 50, 50), "misses cannot be measured"),
        ((10, 0, 10, 0, 50, 50), "false alarms cannot be measured"),
        ((5, 5, 5, 5, 50, 50), "do not follow the person's"),
        ((0, 0, 3, 7, 50, 50), "no flagged picture was labelled"),
    ],
)
def test_what_cannot_be_corrected_says_why(counts, reason):
    found = Correction(table(*counts))

    assert reason in found.reason
    assert found.rate(0.3, 100).value is None


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """300 audits of a judge with known mistakes: 95 % intervals that cover 91 % or more."""
    random = np.random.default_rng(7)
    truth, sensitivity, specificity = 0.35, 0.75, 0.92
    covered = 0
    for run in range(300):
        shows = random.random(2000) < 0.4  # the frame: all kept pictures
        flags = np.where(
            shows, random.random(2000) < sensitivity, random.random(2000) > specificity
        )
        chosen = [
            random.choice(np.flatnonzero(flags == flag), 25, replace=False)
            for flag in (True, False)
        ]
        hits, misses = (int(shows[part].sum()) for part in chosen)
        observed = random.binomial(120, truth * sensitivity + (1 - truth) * (1 - specificity)) / 120
        found = Correction(
            table(hits, 25 - hits, misses, 25 - misses, int(flags.sum()), int((~flags).sum())),
            draws=600, seed=run,
        ).rate(observed, 120)  # fmt: skip
        covered += found.low <= truth <= found.high
    assert 273 <= covered <= 297
