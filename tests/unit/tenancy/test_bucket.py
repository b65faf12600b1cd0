"""The bucket: never more than its capacity at once, never more than its rate for long, and nothing waits for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.tenancy.bucket import TokenBucket

RATES = st.floats(0.01, 1e5)
CAPACITIES = st.floats(1, 1e6)
STEPS = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), max_size=40)


def test_it_starts_full_and_refills_steadily():
    bucket = TokenBucket(2.0, 10.0, 0.0)
    bucket.take(10.0, 0.0)
    assert [bucket.level(at_s) for at_s in (0.0, 1.0, 4.5, 100.0)] == [0.0, 2.0, 9.0, 10.0]


def test_the_wait_is_exact():
    bucket = TokenBucket(2.0, 10.0, 0.0)
    bucket.take(9.0, 0.0)
    assert bucket.wait_s(4.0, 0.0) == 1.5
    assert bucket.wait_s(4.0, 1.5) == 0.0
    assert bucket.full_in_s(1.5) == 3.0


def test_a_cost_above_the_capacity_waits_for_a_full_bucket_and_leaves_a_debt():
    bucket = TokenBucket(1.0, 10.0, 0.0)
    bucket.take(5.0, 0.0)
    assert bucket.wait_s(30.0, 0.0) == 5.0
    assert bucket.wait_s(30.0, 5.0) == 0.0
    bucket.take(30.0, 5.0)
    assert bucket.level(5.0) == -20.0
    assert bucket.wait_s(1.0, 5.0) == 21.0


def test_a_return_does_not_fill_it_beyond_its_capacity():
    bucket = TokenBucket(1.0, 10.0, 0.0)
    bucket.take(4.0, 0.0)
    bucket.take(-400.0, 0.0)
    assert bucket.level(0.0) == 10.0


@pytest.mark.parametrize(("spent", "left"), [(0.0, 50.0), (8.0, 10.0), (20.0, -50.0)])
def test_resized_it_is_as_full_as_it_was(spent, left):
    bucket = TokenBucket(1.0, 10.0, 0.0)
    bucket.take(spent, 0.0)
    bucket.resize(7.0, 50.0, 0.0)
    assert bucket.level(0.0) == left


@given(RATES, CAPACITIES, STEPS)
def test_waiting_as_long_as_told_is_always_enough(rate, capacity, steps):
    bucket, now_s = TokenBucket(rate, capacity, 0.0), 0.0
    for after_s, cost in steps:
        now_s += after_s
        now_s += bucket.wait_s(cost, now_s)
        assert bucket.wait_s(cost, now_s) <= 1e-6 * (1 + now_s)
        bucket.take(cost, now_s)


@given(RATES, CAPACITIES, STEPS)
def test_over_any_time_no_more_is_taken_than_capacity_and_rate_allow(rate, capacity, steps):
    bucket, now_s, taken, largest = TokenBucket(rate, capacity, 0.0), 0.0, 0.0, 0.0
    for after_s, cost in steps:
        now_s += after_s
        if bucket.wait_s(cost, now_s) == 0.0:
            bucket.take(cost, now_s)
            taken, largest = taken + cost, max(largest, cost)
        assert taken <= (capacity + rate * now_s + max(0.0, largest - capacity)) * (1 + 1e-6)
