"""The ratio of two times measured in turn: what disturbs a round, how wide its interval is, and when a bar is decided."""

from __future__ import annotations

import numpy as np
import pytest

from mora.suite.time_ratios import ratio_of_times


def test_a_disturbed_round_changes_nothing_if_it_disturbs_both_times():
    calm = ratio_of_times([9.0] * 10, [10.0] * 10)
    assert ratio_of_times([9.0] * 8 + [18.0, 45.0], [10.0] * 8 + [20.0, 50.0]) == calm
    assert calm.median == pytest.approx(0.9)
    assert calm.interval == pytest.approx((0.9, 0.9))


@pytest.mark.parametrize(("rounds", "beyond"), [(1, 0), (5, 0), (8, 0), (9, 1), (10, 1), (12, 2), (20, 5)])
def test_the_interval_is_the_sign_tests(rounds, beyond):
    """The numbers of ratios left out are those of the tables of the sign test at 5%, two-sided."""
    ratio = ratio_of_times([float(i) for i in range(1, rounds + 1)], [1.0] * rounds)
    assert ratio.interval == (1 + beyond, rounds - beyond)


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        low, high = ratio_of_times(list(rng.lognormal(0.0, 0.3, 10)), [1.0] * 10).interval
        held += low <= 1.0 <= high
    assert held / 1000 == pytest.approx(1 - 2 * 11 / 1024, abs=0.015)  # three standard errors


def test_a_bar_inside_the_interval_is_not_decided():
    ratio = ratio_of_times([0.9, 0.95, 1.02], [1.0, 1.0, 1.0])
    assert not ratio.exceeds(1.0)
    assert not ratio.decides(1.0)
    assert ratio.decides(1.1)
    assert ratio.decides(0.8)


def test_a_case_that_failed_later_is_compared_over_its_rounds():
    assert ratio_of_times([2.0, 8.0], [1.0, 4.0, 100.0]).median == 2.0
