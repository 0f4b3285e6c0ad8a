"""Cohen's kappa and the steps to relapse, against values by hand."""

import pytest

from resalign.backend.statistics.kappa import cohen_kappa
from resalign.backend.statistics.relapse import steps_to_share


def flags(both, first, second, neither):
    one = [True] * (both + first) + [False] * (second + neither)
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    return one, other


def test_kappa_of_a_table_by_hand():
    """20, 5, 10, 15: agreement .7, chance .5, so kappa (.7 - .5) / (1 - .5) = .4."""
    found = cohen_kappa(*flags(20, 5, 10, 15))
    assert (found.both, found.only_first, found.only_second, found.neither) == (20, 5, 10, 15)
    assert found.value == pytest.approx(0.4)
    assert 0.1 < found.low < 0.4 < found.high < 0.7


def test_images_of_one_prompt_widen_kappas_interval():
    one, other = flags(20, 5, 10, 15)
    alone = cohen_kappa(one * 4, other * 4)
    prompts = cohen_kappa(one * 4, other * 4, list(range(50)) * 4)
    assert prompts.value == pytest.approx(alone.value)
    assert prompts.high - prompts.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize(("table", "value"), [((30, 0, 0, 20), 1.0), ((0, 30, 20, 0), None)])
def test_always_and_never_agreeing(table, value):
    found = cohen_kappa(*flags(*table))
    assert found.value == pytest.approx(value if value else -0.9230769)


def test_a_detector_that_flags_all_has_no_kappa():
    found = cohen_kappa([True] * 5, [True, True, False, False, True])
    assert (found.value, found.low, found.high) == (None, None, None)


def share(count, of=10):
    return [place < count for place in range(of)]


def test_steps_are_read_off_the_line_between_two_looks():
    curves = {"a": [(0, [share(0)]), (10, [share(2)]), (50, [share(10)])]}
    found, earliest = steps_to_share(share(10), curves)
    assert found["a"].steps == earliest.steps == pytest.approx(10 + 40 * 3 / 8)
    assert found["a"].low <= found["a"].steps <= found["a"].high


def test_seeds_are_averaged_and_a_rate_at_the_start_counts_as_step_0():
    curves = {"a": [(0, [share(0)]), (10, [share(0), share(10)])], "b": [(0, [share(6)])]}
    found, earliest = steps_to_share(share(10), curves)
    assert found["a"].steps == pytest.approx(10)
    assert found["b"].steps == earliest.steps == 0


def test_a_curve_below_its_level_never_crosses():
    found, _ = steps_to_share(share(10), {"a": [(0, [share(0)]), (9, [share(0)])]})
    assert (found["a"].steps, found["a"].low, found["a"].high) == (None, None, None)


def test_without_a_base_rate_there_is_no_level():
    found, earliest = steps_to_share(share(0), {"a": [(0, [share(0)]), (9, [share(9)])]})
    assert found["a"].steps is None and earliest.steps is None
