"""Confidence intervals."""

from random import Random

import pytest

from beaconry.workload.interval import Interval, interval


def test_known_values_of_student_s_t():
    assert interval([1.0, 3.0]) == Interval(mean=2.0, half=pytest.approx(12.706), count=2)
    assert interval([2.0, 4.0, 6.0]) == Interval(mean=4.0, half=pytest.approx(4.303 * 2 / 3**0.5), count=3)


def test_what_is_missing_does_not_count():
    assert interval([None, 5.0, None]) == Interval(mean=5.0, half=None, count=1)
    assert interval([None]) is None


def test_it_holds_the_true_mean_about_nineteen_times_in_twenty():
    rng = Random(1)
    found = [interval([rng.gauss(10.0, 3.0) for _ in range(5)]) for _ in range(2000)]
    assert 0.93 < sum(abs(one.mean - 10.0) <= one.half for one in found) / 2000 < 0.97
