import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.workload.distribution import CURVE_POINTS, distribution, quantile

numbers = st.lists(st.floats(0, 1e6), min_size=2, max_size=60)


@given(numbers)
def test_quantiles_agree_with_the_standard_library(values):
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    ordered = sorted(values)
    for percent in (1, 50, 90, 99):
        assert quantile(ordered, percent / 100) == pytest.approx(cuts[percent - 1], rel=1e-9, abs=1e-6)


@given(numbers)
def test_the_curve_runs_from_the_least_to_the_greatest_value(values):
    spread = distribution(values)
    assert len(spread.curve) == CURVE_POINTS
    assert spread.curve[0] == min(values)
    assert spread.curve[-1] == spread.max == max(values)
    assert spread.curve[CURVE_POINTS // 2] == spread.p50


def test_one_value_is_all_its_percentiles():
    spread = distribution([3.0])
    assert (spread.count, spread.mean, spread.p50, spread.p99, spread.max) == (1, 3.0, 3.0, 3.0, 3.0)


def test_no_values_have_no_distribution():
    assert distribution([]) is None
