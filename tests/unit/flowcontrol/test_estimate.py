"""Estimates are multiplied with what they have turned out to be worth, within bounds."""

import pytest

from beaconry.flowcontrol.estimate import Estimate


@pytest.mark.parametrize(
    ("took", "factor"), [(1000.0, 1.0), (500.0, 0.5), (2000.0, 2.0), (10.0, 0.25), (90_000.0, 4.0)]
)
def test_the_factor_is_that_of_the_latest_requests_and_at_most_four_either_way(took: float, factor: float):
    estimate = Estimate()
    assert estimate.factor == 1.0
    for _ in range(500):
        estimate.note(1000.0, took)
    assert estimate.factor == pytest.approx(factor, rel=0.01)


def test_a_large_request_counts_for_its_size():
    estimate = Estimate()
    for _ in range(500):
        estimate.note(100.0, 200.0)
        estimate.note(10_000.0, 10_000.0)
    assert estimate.factor == pytest.approx(1.01, abs=0.02)
