"""Resilience and its interval, against closed forms, simulations and limiting cases."""

import numpy as np
import pytest
from scipy.stats import binom

from resalign.backend.statistics.intervals import wilson
from resalign.backend.statistics.resilience import resilience

HITS_AND_THE_IMAGES_THEY_ARE_WORTH = {
    "each prompt counts once where images of one agree": ([4, 0, 0, 0, 0, 0], 6),
    "nothing flagged": ([0, 0, 0, 0, 0, 0], 6),
    "all flagged": ([4, 4, 4, 4, 4, 4], 6),
    "in between": ([3, 2, 0, 0, 0, 0], None),
    "too few to tell prompts apart": ([2, 0, 0, 0, 0, 0], 6),
    "two prompts": ([1, 0], 2),
    "each image counts where prompts do not differ": ([1, 1, 1, 1, 1, 1], 24),
    "no more than there are images": ([1, 1, 1, 1, 1, 0], 24),
    "one prompt": ([1], 1),
}


def random_flags(shape, rate, seed):
    return (np.random.default_rng(seed).random(shape) < rate).tolist()


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


def test_resilience_of_one_image_and_of_none():
    one = resilience([True], {"a": [[True]]})
    none = resilience([], {"a": [[]]}, [])

    assert (one.value, one.worst_rate, one.images) == (0, 1, 1)
    assert (none.value, none.base_rate, none.images, none.clusters) == (None, 0, 0, 0)
    assert "0 of 0 images" in none.reason
    assert resilience([True], {}).images == 0


def test_an_interval_needs_a_base_rate_in_99_of_100_resamples():
    """A resample of 60 images misses all 4 flagged ones in 1.6 % of cases, all 6 in 0.2 %."""
    base, after = [True] * 6 + [False] * 54, [[False] * 60]
    assert resilience(base, {"a": after}).low is not None

    fewer = resilience([False, False, *base[2:]], {"a": after})
    assert (fewer.value, fewer.low, fewer.high) == (1, None, None)


@pytest.mark.parametrize("case", HITS_AND_THE_IMAGES_THEY_ARE_WORTH)
def test_the_interval_of_resilience_holds_wilsons_of_the_images_worth(case):
    """Four images per prompt; the base flags half of them, always the same."""
    hits, worth = HITS_AND_THE_IMAGES_THEY_ARE_WORTH[case]
    flags = [image < count for count in hits for image in range(4)]
    prompts = [prompt for prompt in range(len(hits)) for _ in range(4)]
    rate = sum(hits) / len(flags)
    if worth is None:  # Korn & Graubard: as many as give a mean of this variance
        worth = rate * (1 - rate) / (np.var(np.array(hits) / 4, ddof=1) / len(hits))
        assert len(hits) < worth < len(flags)
    low, high = wilson(rate * worth, worth)
    if 5 <= sum(hits) <= len(flags) - 5:  # no end is nearer than with one fewer
        few = 4 / len(flags) * len(hits)
        low = min(low, wilson(len(hits) - few, len(hits))[0])
        high = max(high, wilson(few, len(hits))[1])

    found = resilience([True, True, False, False] * len(hits), {"a": [flags]}, prompts)

    assert found.value == pytest.approx(1 - 2 * rate)
    drawn = np.random.default_rng(0).integers(len(hits), size=(2000, len(hits)))
    bootstrap_low, bootstrap_high = np.percentile(
        1 - 2 * (np.array(hits) / 4)[drawn].mean(axis=1), (2.5, 97.5)
    )
    assert found.low == pytest.approx(min(bootstrap_low, 1 - 2 * high))
    assert found.high == pytest.approx(max(bootstrap_high, 1 - 2 * low))
    # Wilson's interval is the one that shows
    assert 1 - 2 * high < bootstrap_low or 1 - 2 * low > bootstrap_high
