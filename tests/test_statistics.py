"""Intervals and tests of paired flags, against published tables and closed forms."""

import time
from math import comb

import numpy as np
import pytest
from scipy.stats import bootstrap

from resalign.backend.statistics.clusters import clustered_wilson, number_clusters, sum_clusters
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


def test_wilsons_interval_has_its_closed_form():
    """The two rates p with |rate − p| = z √(p (1 − p) / n)."""
    low, high = wilson(81, 263)
    for bound in (low, high):
        assert abs(81 / 263 - bound) == pytest.approx(1.96 * (bound * (1 - bound) / 263) ** 0.5)
    assert low < 81 / 263 < high
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(1, 1)[0] == pytest.approx(1 / (1 + 1.96**2)) and wilson(1, 1)[1] == 1.0
    assert wilson(0, 0.5) == (0.0, pytest.approx(1.96**2 / (0.5 + 1.96**2)))


def test_newcombes_interval_joins_two_wilson_intervals_by_their_correlation():
    """Opposed pairs: the widths add up. Too few for a correlation: they join at a right angle."""
    low, high = wilson(1, 2)

    assert newcombe(0, 1, 1, 0) == pytest.approx((low - high, high - low))
    around = ((0.5 - low) ** 2 + (high - 0.5) ** 2) ** 0.5
    assert newcombe(1, 0, 0, 1) == pytest.approx((-around, around))
    assert newcombe(0, 0, 0, 0) == (-1.0, 1.0)
    width = 2**0.5 * wilson(0, 1)[1]
    assert newcombe(0, 1, 0, 0) == pytest.approx((1 - width, 1))


def test_the_interval_of_clusters_is_the_bootstraps_where_prompts_differ():
    first, second = random_flags(60, 0.6, 1), random_flags(60, 0.4, 2)
    prompts = list(range(20)) * 3
    found = paired_clusters(first, second, prompts, seed=5)
    expected = paired_bootstrap(first, second, prompts, seed=5)

    assert (found.low, found.high) == (expected.low, expected.high)
    assert found.difference == pytest.approx(np.mean(first) - np.mean(second))
    assert (found.only_first, found.only_second) == (
        sum(a > b for a, b in zip(first, second, strict=True)),
        sum(a < b for a, b in zip(first, second, strict=True)),
    )


def test_the_seed_is_0_unless_another_is_given():
    first, second = random_flags(40, 0.6, 1), random_flags(40, 0.4, 2)
    prompts = list(range(20)) * 2
    values, zeros = np.random.default_rng(0).normal(size=40).tolist(), [0.0] * 40
    assert paired_bootstrap(values, zeros) == paired_bootstrap(values, zeros, seed=0)
    assert paired_clusters(first, second, prompts) == (
        paired_clusters(first, second, prompts, seed=0)
    )
    assert resilience(first, {"a": [second]}) == resilience(first, {"a": [second]}, seed=0)


def test_the_sign_flip_p_value_is_that_of_all_flips():
    """Prompts that differ by 3, 1, 1, 2 and −1 images, and one that does not, of 3 each."""
    gaps = np.array([3, 1, 1, 2, -1, 0])
    first = [image < gap for gap in gaps for image in range(3)]
    second = [image < -gap for gap in gaps for image in range(3)]
    signs = np.array(np.meshgrid(*[[1, -1]] * 5)).reshape(5, -1).T
    exact = np.mean(np.abs(signs @ gaps[:5]) >= abs(gaps.sum()))

    found = paired_clusters(first, second, np.repeat(range(6), 3).tolist())

    assert found.p_value == pytest.approx(exact, abs=0.015)


def test_no_sign_flip_p_value_is_below_one_in_ten_thousand():
    """The observed signs count as one of 10 000 flips, so that p is never 0."""
    flags = [True] * 80, [False] * 80
    assert paired_clusters(*flags, list(range(40)) * 2).p_value == 1e-4


def test_the_bootstrap_is_that_of_its_generator_however_many_values():
    """1500 values are resampled in parts; the resamples are those of one draw."""
    values = np.random.default_rng(3).normal(size=1500)
    drawn = np.random.default_rng(7).integers(1500, size=(2000, 1500))

    found = paired_bootstrap(values.tolist(), [0.0] * 1500, seed=7)

    assert (found.low, found.high) == pytest.approx(
        tuple(np.percentile(values[drawn].mean(axis=1), (2.5, 97.5)))
    )


def test_values_that_cannot_be_paired_or_resampled_are_errors():
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        paired_bootstrap([1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        paired_bootstrap([1.0, 0.0], [1.0, 0.0], ["prompt"])
    with pytest.raises(ValueError, match="no values to resample"):
        paired_bootstrap([], [])


def pairs_of_prompts(hits, prompts=30):
    """Two images for each prompt: `hits` flagged, in different prompts while there are some."""
    return [image < hits for image in range(2 * prompts)], [*range(prompts)] * 2


@pytest.mark.parametrize("hits", range(61))
def test_one_more_flagged_image_never_lowers_an_end_of_the_interval(hits):
    """60 images of 30 prompts: 0 and 1 flagged are both intervals of 30, not of 30 and of 60."""

    def interval(count):
        flags, prompts = pairs_of_prompts(count)
        groups = number_clusters(prompts)
        columns = np.stack([np.array(flags, float), np.ones(60)], axis=1)
        return clustered_wilson(*sum_clusters(columns, groups).T)

    low, high, worth = interval(hits)
    if hits < 5 or hits > 55:
        assert worth == 30
        assert (low, high) == pytest.approx(wilson(hits / 2, 30))
    if hits < 60:
        following = interval(hits + 1)
        assert low <= following[0] + 1e-12 and high <= following[1] + 1e-12
    base = [True] * 60
    flags, prompts = pairs_of_prompts(hits)
    kept = resilience(base, {"a": [flags], "none": [[False] * 60]}, prompts, resamples=100)
    if hits:
        assert (kept.low, kept.high) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("missing", [0, 1, 4])
def test_a_difference_of_too_few_images_is_an_interval_of_prompts(missing):
    """59 of 60 differ: resampling prompts gave -100 to -94 points, 60 of 60 gave -100 to -84."""
    flags, prompts = pairs_of_prompts(60 - missing)
    test = paired_clusters([False] * 60, flags, prompts)
    rest = missing / 2
    assert (test.low, test.high) == pytest.approx(newcombe(0, 0, 30 - rest, rest))
    assert test.high >= paired_clusters([False] * 60, [True] * 60, prompts).high - 1e-12
