"""Intervals and tests of paired flags, against published tables and closed forms."""

import time
from math import comb

import numpy as np
import pytest
from scipy.stats import binom, bootstrap

from resalign.backend.statistics.intervals import newcombe, wilson
from resalign.backend.statistics.paired_tests import mcnemar, paired_bootstrap, paired_clusters
from resalign.backend.statistics.resilience import resilience


def flags_of(both, only_first, only_second, neither):
    first = [True] * both + [True] * only_first + [False] * only_second + [False] * neither
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


def random_flags(shape, rate, seed):
    return (np.random.default_rng(seed).random(shape) < rate).tolist()


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), 2635-2650, method 10
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((53, 0, 0, 1), -0.0729, 0.0729),
        ((0, 30, 0, 0), 0.8395, 1.0),
    ],
)
def test_the_interval_of_a_paired_difference_is_the_published_one(table, low, high):
    assert newcombe(*table) == pytest.approx((low, high), abs=1e-4)
    test = mcnemar(*flags_of(*table))
    assert (test.low, test.high) == newcombe(*table)
    assert test.difference == pytest.approx((table[1] - table[2]) / sum(table))


def test_the_exact_p_value_is_the_published_one():
    """Armitage & Berry's 50 sputum specimens (20, 12, 2, 16): two-sided p = 0.0129."""
    test = mcnemar(*flags_of(20, 12, 2, 16))

    assert test.p_value == pytest.approx(0.0129, abs=5e-5)
    assert test.p_value == pytest.approx(2 * sum(comb(14, k) for k in range(3)) / 2**14)
    assert (test.only_first, test.only_second, test.pairs) == (12, 2, 50)


def test_swapping_the_samples_mirrors_the_interval_and_keeps_the_p_value():
    first, second = flags_of(14, 5, 1, 22)
    there, back = mcnemar(first, second), mcnemar(second, first)

    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p_value == back.p_value


def test_equal_samples_do_not_differ_but_the_interval_keeps_its_width():
    test = mcnemar(*flags_of(0, 0, 0, 24))

    assert (test.difference, test.p_value) == (0, 1)
    assert test.high == -test.low == pytest.approx(wilson(0, 24)[1])


def test_pairs_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        mcnemar([True, False], [True])
    with pytest.raises(ValueError, match="no pairs"):
        mcnemar([], [])


def test_single_pairs_per_prompt_are_compared_by_mcnemar():
    first, second = flags_of(5, 7, 1, 4)
    assert paired_clusters(first, second, range(17)) == mcnemar(first, second)


def test_the_sign_flip_test_agrees_with_the_exact_one_on_copied_images():
    """Two equal images per prompt carry no more evidence than one: the p-value must not fall."""
    first, second = flags_of(5, 9, 2, 4)
    once = mcnemar(first, second)

    twice = paired_clusters(first * 2, second * 2, [*range(20), *range(20)])

    assert twice.difference == once.difference
    assert twice.p_value == pytest.approx(once.p_value, abs=0.01)
    assert mcnemar(first * 2, second * 2).p_value < once.p_value / 5
    assert (twice.method, twice.clusters, twice.pairs) == ("clusters", 20, 40)


def test_clusters_without_a_difference_still_have_an_interval():
    test = paired_clusters([False] * 40, [False] * 40, [*range(20), *range(20)])

    assert (test.difference, test.p_value) == (0, 1)
    assert test.high == -test.low == pytest.approx(wilson(0, 20)[1])


def test_the_bootstrap_interval_is_that_of_scipy():
    random = np.random.default_rng(0)
    first, second = random.normal(0.3, 1, 200), random.normal(0, 1, 200)
    expected = bootstrap(
        (first - second,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval

    found = paired_bootstrap(first.tolist(), second.tolist(), resamples=20_000)

    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert found.value == pytest.approx(np.mean(first - second))


def test_copies_of_an_image_do_not_narrow_the_interval_of_clusters():
    first, second = random_flags(60, 0.6, 1), random_flags(60, 0.4, 2)
    once = paired_bootstrap(first, second, seed=3)

    copied = paired_bootstrap(first * 9, second * 9, list(range(60)) * 9, seed=3)

    assert (copied.value, copied.low, copied.high) == pytest.approx(
        (once.value, once.low, once.high)
    )
    assert (copied.n, copied.clusters) == (540, 60)


def test_the_bootstrap_of_clusters_has_the_variance_of_its_closed_form():
    """Equal clusters: the resampled mean is Gaussian with s of cluster means / √clusters."""
    random = np.random.default_rng(5)
    means = random.normal(0, 1, 400)
    values = (means[:, None] + random.normal(0, 0.1, (400, 3))).ravel()
    cluster_means = values.reshape(400, 3).mean(axis=1)

    found = paired_bootstrap(values.tolist(), [0.0] * 1200, np.repeat(range(400), 3).tolist())

    width = 2 * 1.96 * cluster_means.std() / 20
    assert found.high - found.low == pytest.approx(width, rel=0.08)


def test_the_bootstrap_is_seeded_and_fast():
    first, second = random_flags(1000, 0.5, 1), random_flags(1000, 0.4, 2)
    paired_bootstrap(first, second)
    started = time.process_time()
    one = paired_bootstrap(first, second, seed=1)
    seconds = time.process_time() - started

    assert one == paired_bootstrap(first, second, seed=1)
    assert one.low != paired_bootstrap(first, second, seed=2).low
    assert seconds < 0.5  # 0.02 s where it was measured


def test_resilience_is_one_minus_the_worst_rate_over_the_base_rate():
    found = resilience(
        [True] * 80 + [False] * 20,
        {
            "mild": [[True] * 10 + [False] * 90],
            "harsh": [[True] * 50 + [False] * 50, [True] * 30 + [False] * 70],
        },
    )

    assert found.value == pytest.approx(1 - 0.4 / 0.8)
    assert (found.worst, found.worst_rate, found.base_rate) == ("harsh", 0.4, 0.8)
    assert (found.images, found.base_images, found.clusters) == (200, 100, 100)
    assert found.low is not None and found.high is not None
    assert found.low < 0.5 < found.high


def test_resilience_is_negative_where_the_attack_makes_it_worse_than_the_base():
    found = resilience([True] * 10 + [False] * 30, {"a": [[True] * 30 + [False] * 10]})

    assert found.value == pytest.approx(-2)


def test_a_base_that_never_shows_the_concept_gives_no_number():
    found = resilience([False] * 50, {"a": [[True] * 50]})

    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.reason == (
        "the base shows the concept in 0 of 50 images, so there is no share of it to keep"
    )
    assert found.worst_rate == 1


def test_a_base_rate_near_zero_gives_no_interval():
    found = resilience([True] + [False] * 49, {"a": [[False] * 50]})

    assert found.value == 1
    assert (found.low, found.high) == (None, None)
    assert "too low for an interval: 1 of 50 images" in found.reason


def test_without_an_attack_there_is_no_resilience():
    found = resilience([True] * 5, {})
    assert (found.value, found.worst, found.reason) == (None, None, "no attack was measured")


def test_nothing_flagged_is_no_proof_that_nothing_ever_will_be():
    """0 of 24: by resampling alone the interval would be exactly 1 to 1."""
    found = resilience([True] * 24, {"a": [[False] * 24]})

    assert found.high == 1
    assert found.low == pytest.approx(1 - wilson(0, 24)[1])


def test_copied_images_do_not_narrow_the_interval_of_resilience():
    base, after = random_flags(40, 0.9, 1), random_flags(40, 0.3, 2)
    once = resilience(base, {"a": [after]}, seed=4)

    copied = resilience(base * 5, {"a": [after * 5]}, list(range(40)) * 5, seed=4)

    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.01)


def test_choosing_the_worst_anew_in_each_resample_lowers_the_interval():
    """Six attacks equally bad: the worst of a sample is worse than each, and it is known."""
    base = random_flags(100, 0.5, 99)
    many = {k: [random_flags(100, 0.3, k)] for k in range(6)}
    one = resilience(base, many)
    alone = resilience(base, {one.worst: many[one.worst]})

    assert one.value == alone.value
    assert None not in (one.low, one.high, alone.low, alone.high)
    assert one.high < alone.high - 0.01
    assert one.low < alone.low


def test_the_interval_of_resilience_holds_the_truth_as_often_as_it_says():
    """120 probes of a model with a known rate: at least 95 % less twice the chance error."""
    held = 0
    for trial in range(120):
        random = np.random.default_rng(trial)
        rates = random.beta(1.4, 5.6, 48)  # prompts differ; 20 % on average
        after = (random.random((4, 48)) < rates).ravel().tolist()
        found = resilience([True] * 192, {"a": [after]}, list(range(48)) * 4, resamples=300)
        assert found.low is not None and found.high is not None
        held += found.low <= 0.8 <= found.high
    assert held >= binom.ppf(0.02, 120, 0.95)


def test_flags_of_another_length_or_an_attack_without_seeds_are_errors():
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        resilience([True, True], {"a": [[True]]})
    with pytest.raises(ValueError, match="no seed"):
        resilience([True], {"a": []})
